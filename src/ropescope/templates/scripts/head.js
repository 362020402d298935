// The chosen head in words and numbers, and its entropies over the pairs.

const curves = Object.fromEntries(ENTROPIES.map((entropy) => [entropy, once(() => makeCurve(entropy))]));

function makeCurve(entropy) {
  const figure = makeFigure(`${entropy}-curve`, {
    height: 268,
    x_range: [-0.5, 1],
    y_range: [...page.scales[entropy]],
    xLabel: "pair",
    min_border_left: 40,
  });
  const range = makeSource("x", "low", "high"),
    line = makeSource("x", "y"),
    undefinedPairs = makeSource("x", "y");
  paint(figure.varea(field("x"), field("low"), field("high"), { source: range, fill_alpha: 0.22 }).glyph, {
    fill_color: "curve",
  });
  const limits = Object.keys(SELECTIONS)
    .filter((name) => SELECTIONS[name].entropy === entropy)
    .map((name) => [name, makeLine(figure, "width", name)]);
  const reference = makeLine(figure, "width", "muted", { line_dash: "dotted", line_width: 1.5 });
  const cursor = makeLine(figure, "height", "ink", { line_alpha: 0.35 });
  paint(figure.line(field("x"), field("y"), { source: line, line_width: 1.4 }).glyph, { line_color: "curve" });
  paint(figure.scatter(field("x"), field("y"), { source: line, size: 3, line_color: null }).glyph, {
    fill_color: "curve",
  });
  const selected = limits.map(([name]) => [name, addMarks(figure, name)]);
  paint(figure.scatter(field("x"), field("y"), { source: undefinedPairs, marker: "x", size: 7 }).glyph, {
    line_color: "muted",
  });
  const wavelengths = addWavelengthAxis(figure);
  onPoint(
    figure,
    (x) => describePair(clamp(x, view.pairs)),
    (x) => choose({ pair: clamp(x, view.pairs) }),
  );
  return { figure, range, line, undefinedPairs, limits, reference, cursor, selected, wavelengths };
}

function addMarks(figure, name) {
  const source = makeSource("x", "y");
  paint(figure.scatter(field("x"), field("y"), { source, marker: MARKS[name], size: 7.5, line_color: null }).glyph, {
    fill_color: name,
  });
  return source;
}

function drawHeadings() {
  const { result, facts } = view;
  const layer = result.layers[state.layer],
    still = result.rotated[state.layer] ? "" : " (NoPE)";
  const counts = Object.keys(SELECTIONS).map((name) => `${countsOf(name)[state.layer]} ${SELECTIONS[name].name}`);
  if (facts.silent[state.layer]) counts.push(`${facts.silent[state.layer]} silent`);
  element("heads-title").textContent =
    `Layer ${layer}${still}: ${ENTROPY_NAMES[state.entropy]} of its ${facts.head_name}s`;
  element("heads-note").textContent = `This layer: ${counts.join(", ")}, of ${layerPairs()} pairs.`;
  element("head-title").textContent = `Layer ${layer}, ${facts.head_name} ${state.head} (${still ? "NoPE" : "RoPE"})`;
  element("previous-head").disabled = state.head === 0;
  element("next-head").disabled = !isHead(view, state.layer, state.head + 1);
}

function drawCurve(entropy) {
  const curve = curves[entropy]();
  const start = place(view, state.layer, state.head);
  const codes = view.codes[entropy].subarray(start, start + view.pairs);
  const x = Uint16Array.from(codes, (_, pair) => pair),
    y = Float64Array.from(codes, (code) => entropies[code]);
  const [low, high] = curveScale(entropy);
  setRange(curve.figure.x_range, -0.5, view.pairs - 0.5);
  setRange(curve.figure.y_range, low, high);
  curve.wavelengths(view.result.wavelengths[state.layer]);
  curve.line.data = { x, y };
  curve.range.data = rangeOf(entropy, start, y);
  curve.reference.setv({ location: view.result.references[entropy] ?? -1 });
  curve.limits.forEach(([name, line]) => line.setv({ location: state[name] }));
  curve.selected.forEach(([name, source]) => {
    source.data = selectedPoints(name, codes, y);
  });
  const missing = [...x].filter((pair) => codes[pair] === undefinedCode);
  curve.undefinedPairs.data = { x: missing, y: missing.map(() => low + 0.05 * (high - low)) };
  describeCurve(entropy, y, missing.length);
}

function selectedPoints(name, codes, y) {
  const limit = thresholdCode(state[name]);
  const pairs = Array.from(codes, (_, pair) => pair).filter((pair) => SELECTIONS[name].holds(codes[pair], limit));
  return { x: pairs, y: pairs.map((pair) => y[pair]) };
}

function rangeOf(entropy, start, y) {
  const range = view.read?.[entropy];
  if (!range || view.facts.sequences < 2) return { x: [], low: [], high: [] };
  const pairs = [...y.keys()].filter((pair) => !Number.isNaN(y[pair]));
  return {
    x: pairs,
    low: pairs.map((pair) => entropies[range.low[start + pair]]),
    high: pairs.map((pair) => entropies[range.high[start + pair]]),
  };
}

// One scale for all heads of the stream: that of the figures, wider where values lie outside.
function curveScale(entropy) {
  view.curveScales ??= {};
  view.curveScales[entropy] ??= (() => {
    const [low, high] = page.scales[entropy];
    const known = view.codes[entropy].filter((code) => code < undefinedCode);
    const ends = known.reduce(
      ([least, most], code) => [Math.min(least, code), Math.max(most, code)],
      [undefinedCode, 0],
    );
    return known.length ? [Math.min(low, entropies[ends[0]]), Math.max(high, entropies[ends[1]] + 0.02)] : [low, high];
  })();
  return view.curveScales[entropy];
}

function describeCurve(entropy, y, missing) {
  const known = [...y.keys()].filter((pair) => !Number.isNaN(y[pair])).sort((a, b) => y[a] - y[b]);
  const reference = view.result.references[entropy];
  const name = entropy === "spectrum_fe" ? "constant signal" : "white noise";
  const parts = known.length
    ? [`lowest ${formatNumber(y[known[0]])} at pair ${known[0]}`]
    : ["no pair of this head has a value"];
  if (known.length) parts.push(`highest ${formatNumber(y[known.at(-1)])} at pair ${known.at(-1)}`);
  if (reference !== null) parts.push(`dotted: ${name} ${formatNumber(reference)}`);
  if (view.facts.sequences > 1) parts.push(`shaded: range over ${view.facts.sequences} sequences`);
  if (missing) parts.push(`${missing} undefined (×)`);
  element(`${entropy}-curve-note`).textContent = parts.join(" · ");
}

function drawCurveCursor(entropy) {
  curves[entropy]().cursor.setv({ location: state.pair });
}

function drawPair() {
  element("pair").textContent = describePair(state.pair);
  element("facts").replaceChildren(...pairFacts(state.pair).map(([label, text]) => factRow(label, text)));
}

function describePair(pair) {
  const at = place(view, state.layer, state.head, pair);
  const where = `layer ${view.result.layers[state.layer]} · head ${state.head} · pair ${pair}`;
  const held = selectionsOf(view, state, at).map((name) => SELECTIONS[name].name);
  if (view.codes.spectrum_fe[at] === absent) return `${where}\nthis layer has no such pair`;
  const values = ENTROPIES.map(
    (entropy) => `${ENTROPY_NAMES[entropy]} ${formatNumber(entropies[view.codes[entropy][at]])}`,
  );
  if (isSilent(at)) held.push("silent");
  const said = [...values, ...(held.length ? [held.join(", ")] : [])];
  return `${where} · ${wavelengthWords(view.result, state.layer, pair)}\n${said.join(" · ")}`;
}

function isSilent(at) {
  return view.read?.mean_norm[at] === 0;
}

function pairFacts(pair) {
  const at = place(view, state.layer, state.head, pair);
  if (!view.read) return [];
  const { mean_norm, dc_share, dominant_period, peak_share } = view.read;
  return [
    ["mean norm", formatNumber(mean_norm[at])],
    ["DC share", formatNumber(dc_share[at])],
    ["dominant period", dominant_period[at] > 0 ? `${formatTokens(dominant_period[at])} tokens` : "undefined"],
    ["peak share", formatNumber(peak_share[at])],
  ];
}

function factRow(label, text) {
  const row = document.createElement("div");
  row.append(textElement("dt", label), textElement("dd", text));
  return row;
}

function textElement(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function drawTable() {
  if (!element("values").open) return;
  const header = [
    "pair",
    "wavelength",
    "SpectrumFE",
    "SequenceFE",
    "mean norm",
    "DC share",
    "period",
    "peak share",
    "selected",
  ];
  const start = place(view, state.layer, state.head);
  const rows = Array.from({ length: view.pairs }, (_, pair) => {
    const values = ENTROPIES.map((entropy) => formatNumber(entropies[view.codes[entropy][start + pair]]));
    const held = selectionsOf(view, state, start + pair).map((name) => SELECTIONS[name].name);
    if (isSilent(start + pair)) held.push("silent");
    return [
      String(pair),
      formatTokens(view.result.wavelengths[state.layer][pair]),
      ...values,
      ...pairFacts(pair).map(([, text]) => text),
      held.join(", "),
    ];
  });
  const cells = rows.map((entries) => tableRow("td", entries, header));
  element("values-table").replaceChildren(tableRow("th", header), ...cells);
}

function tableRow(tag, entries, header = []) {
  const row = document.createElement("tr");
  row.append(...entries.map((text) => textElement(tag, text)));
  header.forEach((label, place) => {
    row.children[place].dataset.label = label;
  });
  return row;
}
