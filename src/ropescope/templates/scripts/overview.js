// The two maps: layers by pairs, and heads by pairs of the chosen layer.

const ENTROPY_NAMES = page.labels;
const MAP_TITLES = {
  mean: () => "mean over heads",
  lowest: () => "lowest head",
  ...Object.fromEntries(page.selections.map(({ key, sign }) => [key, () => `share of heads ${sign} ${state[key]}`])),
};
const FADE = 0.45;
const overview = once(makeOverview);
const bars = once(makeBars);
const headsMap = once(makeHeadsMap);

function makeOverview() {
  const figure = makeFigure("overview-map", {
    height: 400,
    x_range: [-0.5, 1],
    y_range: [-0.5, 1],
    xLabel: "pair",
    yLabel: "layer",
    min_border_left: 46,
  });
  const wavelengths = addWavelengthAxis(figure);
  const image = makeImage(figure, page.palettes.viridis, 0, 1);
  const still = makeSource("x", "y");
  paint(
    figure.scatter(field("x"), field("y"), {
      source: still,
      marker: "triangle",
      angle: Math.PI / 2,
      size: 6,
      line_color: null,
    }).glyph,
    { fill_color: "ink" },
  );
  onPoint(figure, describeOverview, (x, y) => {
    element("overview-map").focus({ preventScroll: true });
    choose({ layer: clamp(y, view.layers), pair: clamp(x, view.pairs) });
  });
  return { figure, image, wavelengths, still, cursor: makeCellCursor(figure) };
}

function makeBars() {
  const figure = makeFigure("overview-bars", {
    height: 400,
    x_range: [0, 1],
    y_range: [-0.5, 1],
    xLabel: "selected",
    min_border_left: 4,
  });
  figure.left[0].visible = false;
  figure.below[0].ticker.desired_num_ticks = 2;
  const spacer = new LinearAxis();
  styleAxis(spacer, " ");
  spacer.major_label_overrides = new Map();
  figure.add_layout(spacer, "above");
  setTicks(spacer, [0], [" "]);
  return { figure, sources: Object.fromEntries(Object.keys(SELECTIONS).map((name) => [name, addBars(figure, name)])) };
}

function addBars(figure, name) {
  const source = makeSource("layer", "from", "to");
  const bars = figure.hbar({
    y: field("layer"),
    left: field("from"),
    right: field("to"),
    height: 0.78,
    source,
    line_color: null,
  });
  paint(bars.glyph, { fill_color: name });
  return source;
}

function makeHeadsMap() {
  const figure = makeFigure("heads-map", {
    height: 250,
    x_range: [-0.5, 1],
    y_range: [-0.5, 1],
    xLabel: "pair",
    yLabel: "head",
    min_border_left: 46,
  });
  const image = makeImage(figure, page.palettes.viridis, 0, 1);
  onPoint(figure, describeHeads, (x, y) => {
    element("heads-map").focus({ preventScroll: true });
    choose({ head: clamp(y, view.heads), pair: clamp(x, view.pairs) });
  });
  return { figure, image, cursor: makeCellCursor(figure) };
}

function clamp(value, count) {
  return Math.max(0, Math.min(count - 1, Math.round(value)));
}

function drawOverview() {
  const { result, layers, pairs } = view;
  const shares = state.map in SELECTIONS;
  const [low, high] = shares ? [0, 1] : page.scales[state.entropy];
  const palette = shares ? page.palettes.cividis : fadedPalette(state.entropy);
  overview().image.mapper.setv({ palette, low, high });
  overview().image.show(overviewValues(view, state), layers, pairs);
  const still = result.rotated.flatMap((rotated, layer) => (rotated ? [] : [layer]));
  overview().still.data = { x: still.map(() => pairs + 0.3), y: still };
  if (still.length) setRange(overview().figure.x_range, -0.5, pairs + 1);
  overview().wavelengths(result.wavelengths[Math.max(0, result.rotated.indexOf(true))]);
  setTicks(overview().figure.left[0], ...layerTicks(result.layers));
  drawScale(palette, low, high);
  const sequences = view.facts.sequences > 1 ? `, mean over ${view.facts.sequences} sequences` : "";
  element("overview-title").textContent =
    `${ENTROPY_NAMES[state.entropy]} of ${view.facts.name}, ${MAP_TITLES[state.map]()}`;
  const note = shares ? "Bright: many heads" : "Full colour: selected by a threshold; pale: between";
  element("overview-note").textContent =
    `${note}${sequences}${still.length ? ". ◂ layers without rotation (NoPE)" : ""}.`;
}

function layerTicks(layers) {
  const places = layers.map((_, place) => place).filter((place) => place % Math.ceil(layers.length / 12) === 0);
  return [places, places.map((place) => String(layers[place]))];
}

// Values that no threshold selects are paler.
function fadedPalette(entropy) {
  const [low, high] = page.scales[entropy];
  const pale = channels(colour("fade"));
  const full = page.palettes.viridis;
  return full.map((entry, i) => {
    const value = low + ((high - low) * (i + 0.5)) / full.length;
    const selected = Object.keys(SELECTIONS).some(
      (name) =>
        SELECTIONS[name].entropy === entropy &&
        (SELECTIONS[name].sign === "<" ? value < state[name] : value > state[name]),
    );
    return selected ? entry : blend(channels(entry), pale);
  });
}

function channels(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

function blend(own, pale) {
  const mixed = own.map((value, i) => Math.round(value + FADE * (pale[i] - value)));
  return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

function drawScale(palette, low, high) {
  const [first, bar, last] = element("overview-scale").children;
  const stops = palette.filter((_, i) => i % 4 === 0);
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  first.textContent = low.toFixed(1);
  last.textContent = high.toFixed(1);
}

function drawCounts() {
  for (const name in SELECTIONS) writeCount(name, countsOf(name));
}

function countsOf(name) {
  return layerCounts(view, name, state[name]);
}

function drawBars() {
  const shown = Object.keys(SELECTIONS).filter((name) => SELECTIONS[name].entropy === state.entropy);
  const layer = Array.from({ length: view.layers }, (_, i) => i);
  let from = new Uint32Array(view.layers);
  for (const name in SELECTIONS) {
    const to = shown.includes(name) ? from.map((start, i) => start + countsOf(name)[i]) : from;
    bars().sources[name].data = { layer, from, to };
    from = to;
  }
  const widest = Math.max(1, ...from);
  setRange(bars().figure.x_range, 0, widest * 1.05);
  setRange(bars().figure.y_range, -0.5, view.layers - 0.5);
  element("overview-bars").setAttribute("aria-label", `Pairs selected in each layer, at most ${widest}`);
}

function layerPairs() {
  const row = view.heads * view.pairs;
  return view.codes.spectrum_fe
    .subarray(state.layer * row, (state.layer + 1) * row)
    .reduce((count, code) => count + (code !== absent), 0);
}

function writeCount(name, counts) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  element(`${name}-count`).textContent = total.toLocaleString("en");
  element(`${name}-share`).textContent =
    `of ${view.present.toLocaleString("en")} pairs (${((100 * total) / Math.max(view.present, 1)).toFixed(1)} %)`;
  element(`${name}-value`).textContent = state[name].toFixed(3);
}

function drawHeads() {
  const start = place(view, state.layer, 0);
  const codes = view.codes[state.entropy].subarray(start, start + view.heads * view.pairs);
  const [low, high] = page.scales[state.entropy];
  headsMap().image.mapper.setv({ palette: fadedPalette(state.entropy), low, high });
  headsMap().image.show(
    Float32Array.from(codes, (code) => entropies[code]),
    view.heads,
    view.pairs,
  );
  setTicks(headsMap().figure.left[0], ...layerTicks(Array.from({ length: view.heads }, (_, i) => i)));
}

function drawCursor() {
  overview().cursor(state.pair, state.layer);
}

function drawHeadsCursor() {
  headsMap().cursor(state.pair, state.head);
}

function describeOverview(x, y) {
  if (x < -0.5 || y < -0.5 || x > view.pairs - 0.5 || y > view.layers - 0.5) return "";
  const layer = clamp(y, view.layers),
    pair = clamp(x, view.pairs);
  const value = overviewValues(view, state)[layer * view.pairs + pair];
  const where = `layer ${view.result.layers[layer]} · pair ${pair} · ${wavelengthWords(layer, pair)}`;
  return `${where}\n${MAP_TITLES[state.map]()}: ${formatNumber(value)}`;
}

function describeHeads(x, y) {
  if (x < -0.5 || y < -0.5 || x > view.pairs - 0.5 || y > view.heads - 0.5) return "";
  const head = clamp(y, view.heads),
    pair = clamp(x, view.pairs);
  const value = entropies[view.codes[state.entropy][place(view, state.layer, head, pair)]];
  const where = `head ${head} · pair ${pair} · ${wavelengthWords(state.layer, pair)}`;
  return `${where}\n${ENTROPY_NAMES[state.entropy]} ${formatNumber(value)}`;
}

function wavelengthWords(layer, pair) {
  const tokens = view.result.wavelengths[layer][pair];
  if (tokens === page.unknown) return "silent, wavelength not known";
  return tokens === null ? "no rotation" : `wavelength ${formatTokens(tokens)} tokens`;
}
