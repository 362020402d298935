// The two maps: layers by pairs, and heads by pairs of the chosen layer.

const ENTROPY_NAMES = page.labels;
const MAP_TITLES = {
  mean: () => "mean over heads",
  lowest: () => "lowest head",
  ...Object.fromEntries(page.selections.map(({ key, sign }) => [key, () => `share of heads ${sign} ${state[key]}`])),
};
const FADE = 0.45;
const overview = once(() => makeOverview("overview-map", () => view));
const besideMap = once(() => makeOverview("beside-map", () => beside));
const bars = once(makeBars);
const headsMap = once(makeHeadsMap);

function makeOverview(id, shown) {
  const figure = makeFigure(id, {
    height: 400,
    x_range: [-0.5, 1],
    y_range: [-0.5, 1],
    xLabel: "pair",
    yLabel: "layer",
    min_border_left: 46,
  });
  const wavelengths = addWavelengthAxis(figure);
  const image = makeImage(figure, page.palettes.viridis, 0, 1);
  const still = makeSource("x", "y"),
    hatched = makeHatching(figure);
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
  onPoint(
    figure,
    (x, y) => describeOverview(shown(), x, y),
    (x, y) => {
      element(id).focus({ preventScroll: true });
      chooseCell(clamp(y, shown().layers), clamp(x, shown().pairs));
    },
  );
  return { figure, image, wavelengths, still, hatched, cursor: makeCellCursor(figure) };
}

// The map of lowest heads opens the head that it shows.
function chooseCell(layer, pair) {
  const known = layer < view.layers && pair < view.pairs;
  const head = known && state.map === "lowest" ? headOfLowest(view, state.entropy, layer, pair) : null;
  choose({ layer, pair, ...(head === null ? {} : { head }) });
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
  const image = makeImage(figure, page.palettes.viridis, 0, 1),
    hatched = makeHatching(figure);
  onPoint(figure, describeHeads, (x, y) => {
    element("heads-map").focus({ preventScroll: true });
    choose({ head: clamp(y, view.heads), pair: clamp(x, view.pairs) });
  });
  return { figure, image, hatched, cursor: makeCellCursor(figure) };
}

function clamp(value, count) {
  return Math.max(0, Math.min(count - 1, Math.round(value)));
}

function drawOverview() {
  const scale = mapScale();
  drawMap(overview(), view, scale);
  drawScale(scale);
  element("overview-title").textContent =
    `${ENTROPY_NAMES[state.entropy]} of ${view.facts.name}, ${MAP_TITLES[state.map]()}`;
  element("overview-name").textContent = view.result.name;
  const sequences = view.facts.sequences > 1 ? `, mean over ${view.facts.sequences} sequences` : "";
  const note = state.map in SELECTIONS ? "Bright: many heads" : "Full colour: selected by a threshold; pale: between";
  const still = view.result.rotated.includes(false) ? ". ◂ layers without rotation (NoPE)" : "";
  element("overview-note").textContent = `${note}${sequences}${still}.`;
  drawMissing();
}

function drawBeside() {
  if (beside) drawMap(besideMap(), beside, mapScale());
}

function drawMap({ figure, image, wavelengths, still, hatched }, data, { palette, low, high }) {
  const { result, layers, pairs } = data;
  image.mapper.setv({ palette, low, high });
  image.show(overviewValues(data, state), layers, pairs);
  hatched.data = undefinedCells(data, state.entropy);
  const stills = result.rotated.flatMap((rotated, layer) => (rotated ? [] : [layer]));
  still.data = { x: stills.map(() => pairs + 0.3), y: stills };
  if (stills.length) setRange(figure.x_range, -0.5, pairs + 1);
  wavelengths(result.wavelengths[Math.max(0, result.rotated.indexOf(true))]);
  setTicks(figure.left[0], ...layerTicks(result.layers));
}

// Of an entropy that of every page; of a share up to the largest that is drawn.
function mapScale() {
  if (state.map in SELECTIONS) {
    const drawn = [view, beside].flatMap((data) => (data ? [...overviewValues(data, state)] : []));
    const high = Math.max(...drawn.filter((share) => share > 0), 0) || 1;
    return { palette: page.palettes.cividis, low: 0, high, words: (share) => `${Math.round(100 * share)} %` };
  }
  const [low, high] = page.scales[state.entropy];
  return { palette: fadedPalette(state.entropy), low, high, words: (value) => value.toFixed(1) };
}

function drawMissing() {
  const silent = view.facts.silent.reduce((sum, count) => sum + count, 0);
  const hatched = undefinedCells(view, state.entropy).x.length > 0;
  const count = silent === 1 ? "1 pair is" : `${silent.toLocaleString("en")} pairs are`;
  const parts = [];
  if (hatched) parts.push("Hatched: no head has a value there, its norm being always 0 (silent) or flat");
  if (silent) parts.push(`${count} silent and in no selection`);
  element("missing-note").hidden = !parts.length;
  element("missing-note").textContent = `${parts.join(". ")}.`;
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

function drawScale({ palette, low, high, words }) {
  const [first, bar, last] = element("overview-scale").children;
  const stops = palette.filter((_, i) => i % 4 === 0);
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  first.textContent = words(low);
  last.textContent = words(high);
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
  const missing = [...codes.keys()].filter((cell) => codes[cell] === undefinedCode);
  headsMap().hatched.data = {
    x: missing.map((cell) => cell % view.pairs),
    y: missing.map((cell) => Math.floor(cell / view.pairs)),
  };
  setTicks(headsMap().figure.left[0], ...layerTicks(Array.from({ length: view.heads }, (_, i) => i)));
}

function drawCursor() {
  overview().cursor(state.pair, state.layer);
}

function drawBesideCursor() {
  if (beside) besideMap().cursor(state.pair, state.layer);
}

function drawHeadsCursor() {
  headsMap().cursor(state.pair, state.head);
}

function describeOverview(data, x, y) {
  if (x < -0.5 || y < -0.5 || x > data.pairs - 0.5 || y > data.layers - 0.5) return "";
  const layer = clamp(y, data.layers),
    pair = clamp(x, data.pairs);
  const value = overviewValues(data, state)[layer * data.pairs + pair];
  const where = `layer ${data.result.layers[layer]} · pair ${pair} · ${wavelengthWords(data.result, layer, pair)}`;
  const head = state.map === "lowest" ? headOfLowest(data, state.entropy, layer, pair) : null;
  const said = state.map in SELECTIONS && !Number.isNaN(value) ? percent(value) : formatNumber(value);
  return `${where}\n${MAP_TITLES[state.map]()}${head === null ? "" : `, head ${head}`}: ${said}`;
}

function describeHeads(x, y) {
  if (x < -0.5 || y < -0.5 || x > view.pairs - 0.5 || y > view.heads - 0.5) return "";
  const head = clamp(y, view.heads),
    pair = clamp(x, view.pairs);
  const value = entropies[view.codes[state.entropy][place(view, state.layer, head, pair)]];
  const where = `head ${head} · pair ${pair} · ${wavelengthWords(view.result, state.layer, pair)}`;
  return `${where}\n${ENTROPY_NAMES[state.entropy]} ${formatNumber(value)}`;
}

function wavelengthWords(result, layer, pair) {
  const tokens = result.wavelengths[layer][pair];
  if (tokens === page.unknown) return "silent, wavelength not known";
  return tokens === null ? "no rotation" : `wavelength ${formatTokens(tokens)} tokens`;
}
