// Perplexity over alpha, a chart for each selection; drawn when it comes into view, or when nothing else is to be done.

const waitingSweeps = new Map(
  page.sweeps
    .flatMap((selections, number) => selections.map((data, place) => [`sweep-${number}-${place}`, data]))
    .filter(([, data]) => data.pairs),
);
const watcher = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => drawSweep(target.id)),
  { rootMargin: "300px" },
);

for (const id of waitingSweeps.keys()) watcher.observe(element(id));

function drawNextSweep() {
  const [id] = waitingSweeps.keys();
  if (id) drawSweep(id);
  return Boolean(id);
}

function drawSweep(id) {
  const data = waitingSweeps.get(id);
  watcher.unobserve(element(id));
  if (!waitingSweeps.delete(id)) return;
  const figure = makeFigure(id, {
    height: 260,
    y_axis_type: "log",
    x_range: [-0.03, 1.03],
    y_range: sweepRange(data),
    xLabel: data.strength.name,
    yLabel: "perplexity",
    min_border_left: 56,
  });
  // Bokeh's own for logarithms rounds 30 and 35 to powers of ten where they are the only ticks.
  figure.left[0].formatter = new Bokeh.BasicTickFormatter();
  addControls(figure, data);
  const { x, y } = points(data, "selected");
  paint(figure.line(x, y, { line_width: 1.8 }).glyph, { line_color: "band" });
  paint(figure.scatter(x, y, { size: 7, line_color: null }).glyph, { fill_color: "band" });
  figure.ygrid.visible = true;
  figure.center.forEach((grid) => paint(grid, { grid_line_color: "line" }));
  onPoint(figure, (at) => describeAlpha(data, at));
}

// A flat curve must not look like a steep one: a fifth more and less is always shown.
function sweepRange(data) {
  const values = ["selected", "random_low", "random_high", "lowest_norm"].flatMap((name) => points(data, name).y);
  const low = Math.min(...values),
    high = Math.max(...values);
  const middle = Math.sqrt(low * high),
    reach = Math.max(1.2, 1.1 * Math.sqrt(high / low));
  return [middle / reach, middle * reach];
}

// Marks where controls were judged; at 1 they are the model as it stands.
function addControls(figure, data) {
  const [mean, low, high, lowest] = ["random_mean", "random_low", "random_high", "lowest_norm"].map((name) =>
    points(data, name, (alpha) => alpha < 1),
  );
  const bars = figure.segment(low.x, low.y, high.x, high.y, { line_width: 1.6 });
  paint(bars.glyph, { line_color: "muted" });
  const squares = figure.scatter(mean.x, mean.y, { marker: "square", size: 8, line_color: null });
  paint(squares.glyph, { fill_color: "muted" });
  const triangles = { marker: "inverted_triangle", size: 9, fill_color: null, line_width: 1.6 };
  paint(figure.scatter(lowest.x, lowest.y, triangles).glyph, { line_color: "outlier" });
}

function points(data, name, wanted = () => true) {
  const places = [...data.alphas.keys()].filter((place) => data[name][place] !== null && wanted(data.alphas[place]));
  return { x: places.map((place) => data.alphas[place]), y: places.map((place) => data[name][place]) };
}

function describeAlpha(data, x) {
  const place = [...data.alphas.keys()].reduce(
    (best, at) => (Math.abs(data.alphas[at] - x) < Math.abs(data.alphas[best] - x) ? at : best),
    0,
  );
  const said = [
    ["selected", "selected pairs"],
    ["random_mean", "random pairs"],
    ["lowest_norm", "lowest norm"],
  ]
    .filter(([name]) => data[name][place] !== null)
    .map(([name, words]) => `${words} ${data[name][place]}`);
  return `${data.strength.subject} ${data.alphas[place]}\n${said.join("\n")}`;
}
