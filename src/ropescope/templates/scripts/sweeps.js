// Perplexity over alpha, a chart for each selection; drawn when it comes into view.

const watcher = new IntersectionObserver(
  (entries) =>
    entries
      .filter((entry) => entry.isIntersecting)
      .forEach(({ target }) => {
        watcher.unobserve(target);
        drawSweep(target.id, ...target.id.split("-").slice(1).map(Number));
      }),
  { rootMargin: "300px" },
);

page.sweeps.forEach((selections, number) =>
  selections.forEach((_, place) => watcher.observe(element(`sweep-${number}-${place}`))),
);

function drawSweep(id, number, place) {
  const data = page.sweeps[number][place];
  const figure = makeFigure(id, {
    height: 260,
    y_axis_type: "log",
    x_range: [-0.03, 1.03],
    y_range: sweepRange(data),
    xLabel: "alpha",
    yLabel: place ? "" : "perplexity",
    min_border_left: 56,
  });
  const low = points(data, "random_low"),
    high = points(data, "random_high");
  paint(figure.varea({ x: low.x, y1: low.y, y2: high.y, fill_alpha: 0.25 }).glyph, { fill_color: "muted" });
  addLine(figure, points(data, "random_mean"), "muted", { line_width: 1.2 });
  addLine(figure, points(data, "lowest_norm"), "outlier", { line_width: 1.4, line_dash: "dashed" });
  const { x, y } = points(data, "selected");
  addLine(figure, { x, y }, "band", { line_width: 1.8 });
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

function addLine(figure, { x, y }, colourName, options) {
  paint(figure.line(x, y, options).glyph, { line_color: colourName });
}

function points(data, name) {
  const places = [...data.alphas.keys()].filter((place) => data[name][place] !== null);
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
  return `alpha ${data.alphas[place]}\n${said.join("\n")}`;
}
