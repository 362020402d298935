// More of the chosen head: norms along the text, mean spectrum and dominant periods.

const norms = once(makeNorms);
const spectrum = once(makeSpectrum);
const periods = once(makePeriods);

function makeNorms() {
  const figure = makeFigure("norms", {
    height: 260,
    x_range: [0, 1],
    y_range: [-0.5, 1],
    xLabel: "position (tokens)",
    yLabel: "pair",
    min_border_left: 40,
  });
  const image = makeImage(figure, page.palettes.magma, 0, 1);
  const cursor = paint(new BoxAnnotation({ fill_alpha: 0, line_alpha: 1, line_dash: "dashed" }), {
    line_color: "frame",
  });
  figure.add_layout(cursor);
  figure.below[0].ticker.desired_num_ticks = 4;
  onPoint(figure, describeNorm, (x, y) => choose({ pair: clamp(y, view.pairs) }));
  return { figure, image, cursor, shown: -1 };
}

function makeSpectrum() {
  const figure = makeFigure("spectrum", {
    height: 260,
    x_axis_type: "log",
    y_axis_type: "log",
    x_range: [0.001, 0.5],
    y_range: [1e-8, 1],
    xLabel: "period (tokens)",
    yLabel: "share of power",
    min_border_left: 50,
  });
  const line = makeSource("x", "y");
  paint(figure.line(field("x"), field("y"), { source: line, line_width: 1.4 }).glyph, { line_color: "curve" });
  onPoint(figure, describeBin);
  return { figure, line };
}

function makePeriods() {
  const figure = makeFigure("periods", {
    height: 260,
    y_axis_type: "log",
    x_range: [-0.5, 1],
    y_range: [1.8, 5000],
    xLabel: "pair",
    yLabel: "tokens",
    min_border_left: 50,
  });
  const turns = makeSource("x", "y"),
    points = makeSource("x", "y", "size");
  paint(figure.line(field("x"), field("y"), { source: turns, line_width: 1, line_dash: "dashed" }).glyph, {
    line_color: "muted",
  });
  paint(
    figure.scatter(field("x"), field("y"), { source: points, size: field("size"), fill_alpha: 0.75, line_color: null })
      .glyph,
    { fill_color: "periodic" },
  );
  const cursor = makeLine(figure, "height", "ink", { line_alpha: 0.35 });
  onPoint(
    figure,
    (x) => describePair(clamp(x, view.pairs)),
    (x) => choose({ pair: clamp(x, view.pairs) }),
  );
  return { figure, turns, points, cursor };
}

function drawNorms() {
  const kept = view.facts.norms?.heads.findIndex(([layer, head]) => layer === state.layer && head === state.head) ?? -1;
  element("norms-missing").hidden = kept >= 0;
  norms().shown = kept;
  if (kept < 0) return explainMissingNorms();
  const { stretches, start, end } = view.facts.norms;
  const codes = view.read.norms.codes.subarray(kept * view.pairs * stretches, (kept + 1) * view.pairs * stretches);
  norms().values = Float32Array.from(codes, (code) => (code === byte_missing ? NaN : code / byte_top));
  norms().image.show(norms().values, view.pairs, stretches, [start, end]);
  element("norms-note").textContent =
    `First sequence; brightest ${formatNumber(view.read.norms.limits[kept], 2)} and above. Framed: the chosen pair.`;
}

function explainMissingNorms() {
  const layer = view.result.layers[state.layer];
  const near = view.facts.norms?.heads.find(([other]) => other === state.layer) ?? view.facts.norms?.heads[0];
  const jump = element("norms-jump");
  element("norms-note").textContent = "";
  element("norms-missing").firstElementChild.textContent =
    view.stream === "query"
      ? `The norms of this head were not kept. Measure with --norm-heads ${layer}:${state.head} to see them.`
      : "The norms of this head were not kept. Measure with --norm-heads LAYER:HEAD of a query head that reads it.";
  jump.hidden = !near;
  if (near) jump.textContent = `Show layer ${view.result.layers[near[0]]}, head ${near[1]}`;
  jump.onclick = () => choose({ layer: near[0], head: near[1] });
}

function drawSpectrum() {
  const { bins } = view.facts;
  const start = (state.layer * view.heads + state.head) * bins;
  const frame = 2 * (bins - 1);
  const y = Float64Array.from(view.read.spectra.subarray(start, start + bins), (code) => powers[code]);
  // a logarithmic axis has no zero: the constant part stands half a bin before the first
  const x = Float64Array.from(y, (_, bin) => (bin || 0.5) / frame);
  spectrum().line.data = { x, y };
  setRange(spectrum().figure.x_range, 0.45 / frame, 0.5);
  setRange(spectrum().figure.y_range, y.reduce((least, value) => Math.min(least, value), 1e-2) / 2, 1.5);
  const marked = [4, 16, 64, 256].map((factor) => factor / frame).filter((frequency) => frequency < 0.4);
  setTicks(
    spectrum().figure.below[0],
    [0.5 / frame, ...marked],
    ["const.", ...marked.map((frequency) => String(Math.round(1 / frequency)))],
  );
  element("spectrum-note").textContent = Number.isNaN(y[0])
    ? "No pair of this head has a spectrum."
    : `Mean over pairs and sequences. Constant part ${percent(y[0] + y[1])}.`;
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function drawPeriods() {
  const start = place(view, state.layer, state.head);
  const { dominant_period, peak_share } = view.read;
  const pairs = Array.from({ length: view.pairs }, (_, pair) => pair);
  const defined = pairs.filter((pair) => dominant_period[start + pair] > 0);
  const turning = pairs.filter((pair) => view.result.wavelengths[state.layer][pair] > 0);
  const longest = view.result.length ?? Math.max(16, ...defined.map((pair) => dominant_period[start + pair]));
  periods().points.data = {
    x: defined,
    y: defined.map((pair) => dominant_period[start + pair]),
    size: defined.map((pair) => 4 + 14 * Math.sqrt(peak_share[start + pair])),
  };
  periods().turns.data = { x: turning, y: turning.map((pair) => view.result.wavelengths[state.layer][pair]) };
  setRange(periods().figure.x_range, -0.5, view.pairs - 0.5);
  setRange(periods().figure.y_range, 1.6, 1.6 * longest);
  element("periods-note").textContent =
    "Strongest period of each pair that half of the windows share, large where it stands out. Dashed: the pair's own wavelength.";
}

function drawPeriodsCursor() {
  periods().cursor.setv({ location: state.pair });
}

function drawNormsCursor() {
  norms().cursor.setv({ bottom: state.pair - 0.5, top: state.pair + 0.5 });
}

function describeNorm(x, y) {
  if (norms().shown < 0) return "";
  const { stretches, start, end } = view.facts.norms;
  const stretch = Math.floor(((x - start) / (end - start)) * stretches),
    pair = clamp(y, view.pairs);
  const value = norms().values[pair * stretches + stretch] * view.read.norms.limits[norms().shown];
  return stretch < 0 || stretch >= stretches
    ? ""
    : `pair ${pair} · position ${Math.round(start + (stretch * (end - start)) / stretches)}\nnorm ${formatNumber(value, 2)}`;
}

function describeBin(x) {
  const frame = 2 * (view.facts.bins - 1);
  const bin = Math.min(view.facts.bins - 1, x * frame < 0.75 ? 0 : Math.round(x * frame));
  const start = (state.layer * view.heads + state.head) * view.facts.bins;
  const share = powers[view.read.spectra[start + bin]];
  const where = bin ? `period ${formatTokens(frame / bin)} tokens` : "constant part";
  return `${where}\nshare of power ${share.toPrecision(2)}`;
}
