// What all charts share: BokehJS figures without tools, colours that follow the theme, and text under the pointer.

const { Plotting, ColumnDataSource, LinearColorMapper, BoxAnnotation, Span, FixedTicker, LinearAxis } = Bokeh;
const { ndarray } = Bokeh.require("core/util/ndarray");
const MARKS = { band: "circle", outlier: "triangle", periodic: "square" };
const painted = [];
// Views of the charts, by the element that holds each.
const drawnCharts = new Map();
const ticksShown = new Map();
const pointer = { x: 0, y: 0 };

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Give a model's properties the theme's colours, now and whenever the theme changes.
function paint(model, colours) {
  painted.push([model, colours]);
  applyColours(model, colours);
  return model;
}

function applyColours(model, colours) {
  model.setv(Object.fromEntries(Object.entries(colours).map(([property, name]) => [property, colour(name)])));
}

function repaint() {
  for (const [model, colours] of painted) applyColours(model, colours);
}

// A chart is made when it is first drawn, so that the first view waits for the map alone.
function once(make) {
  let made = null;
  return () => (made ??= make());
}

function makeFigure(id, { xLabel = "", yLabel = "", ...options }) {
  const figure = Plotting.figure({
    sizing_mode: "stretch_width",
    tools: "",
    toolbar_location: null,
    min_border: 6,
    outline_line_color: null,
    background_fill_color: null,
    border_fill_color: null,
    ...options,
  });
  styleAxis(figure.below[0], xLabel);
  styleAxis(figure.left[0], yLabel);
  figure.grid.visible = false;
  Plotting.show(figure, element(id)).then((drawn) => {
    drawnCharts.set(id, drawn);
    // what a chart says stands beside it, and the maps take the keys: inside there is nothing to stop at
    drawn.canvas_view.events_el.removeAttribute("tabindex");
  });
  return figure;
}

function styleAxis(axis, label) {
  axis.setv({
    axis_label: label,
    axis_label_text_font_size: "12px",
    axis_label_text_font_style: "normal",
    axis_label_standoff: 4,
    axis_label_text_font: "system-ui",
    major_label_text_font: "system-ui",
    major_label_text_font_size: "11px",
    major_label_standoff: 3,
    axis_line_color: null,
    minor_tick_line_color: null,
    major_tick_in: 0,
  });
  paint(axis, { major_label_text_color: "muted", axis_label_text_color: "muted", major_tick_line_color: "line" });
}

function makeSource(...columns) {
  return new ColumnDataSource({ data: Object.fromEntries(columns.map((name) => [name, []])) });
}

function field(name) {
  return { field: name };
}

function makeImage(figure, palette, low, high) {
  const source = makeSource("image", "x", "y", "width", "height");
  const mapper = paint(new LinearColorMapper({ palette, low, high }), { nan_color: "nothing" });
  figure.image(mapper, field("image"), field("x"), field("y"), field("width"), field("height"), { source });
  const show = (values, rows, columns, [left, right] = [-0.5, columns - 0.5], bottom = -0.5) => {
    const image = ndarray(values.buffer, { dtype: "float32", shape: [rows, columns] });
    source.data = { image: [image], x: [left], y: [bottom], width: [right - left], height: [rows] };
    setRange(figure.x_range, left, right);
    setRange(figure.y_range, bottom, bottom + rows);
  };
  return { show, mapper };
}

// Cells that have a pair but no value.
function makeHatching(figure) {
  const source = makeSource("x", "y");
  const cells = { x: field("x"), y: field("y"), width: 1, height: 1, source, line_color: null, hatch_scale: 6 };
  const glyph = figure.rect({ ...cells, hatch_pattern: "right_diagonal_line", hatch_weight: 1.5 }).glyph;
  paint(glyph, { fill_color: "nothing", hatch_color: "ink" });
  return source;
}

function setRange(range, start, end) {
  range.setv({ start, end });
}

// The chosen place, dark within light so that it shows on every colour.
function makeCellCursor(figure) {
  const boxes = [
    ["#ffffff", 5],
    ["#000000", 2],
  ].map(
    ([line_color, line_width]) =>
      new BoxAnnotation({ fill_alpha: 0, line_alpha: 1, line_color, line_width, left: 0, right: 0, top: 0, bottom: 0 }),
  );
  boxes.forEach((box) => figure.add_layout(box));
  return (x, y) => boxes.forEach((box) => box.setv({ left: x - 0.5, right: x + 0.5, bottom: y - 0.5, top: y + 0.5 }));
}

function makeLine(figure, dimension, colourName, options = {}) {
  const span = paint(new Span({ dimension, line_width: 1, level: "underlay", ...options }), { line_color: colourName });
  figure.add_layout(span);
  return span;
}

// The same ticks again would lay the whole figure out anew.
function setTicks(axis, places, labels) {
  const ticks = places.map((place, i) => `${place} ${labels[i]}`).join();
  if (ticksShown.get(axis) === ticks) return;
  ticksShown.set(axis, ticks);
  axis.setv({
    ticker: new FixedTicker({ ticks: places }),
    major_label_overrides: new Map(places.map((place, i) => [place, labels[i]])),
  });
}

function evenPlaces(count, wanted) {
  return [...new Set(Array.from({ length: wanted }, (_, i) => Math.round((i * (count - 1)) / (wanted - 1))))];
}

function addWavelengthAxis(figure) {
  const axis = new LinearAxis();
  styleAxis(axis, "wavelength (tokens)");
  figure.add_layout(axis, "above");
  return (wavelengths) => {
    const places = evenPlaces(wavelengths.length, 5);
    setTicks(
      axis,
      places,
      places.map((place) => formatTokens(wavelengths[place])),
    );
  };
}

function formatTokens(tokens) {
  if (tokens === null) return "∞";
  if (tokens === page.unknown) return tokens;
  const [scale, suffix] = tokens >= 999500 ? [1e6, "M"] : tokens >= 999.5 ? [1e3, "k"] : [1, ""];
  return (tokens / scale).toFixed(tokens / scale < 9.95 ? 1 : 0) + suffix;
}

function formatNumber(value, digits = 3) {
  return Number.isFinite(value) ? value.toFixed(digits) : "undefined";
}

function onPoint(figure, describe, choose) {
  figure.on_event("mousemove", (event) => showTooltip(describe(event.x, event.y)));
  figure.on_event("mouseleave", () => showTooltip(""));
  // two quick clicks on different places come as a tap and a double tap
  if (choose) for (const kind of ["tap", "doubletap"]) figure.on_event(kind, (event) => choose(event.x, event.y));
}

function showTooltip(text) {
  const box = element("tooltip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const left = Math.min(pointer.x + 14, innerWidth - box.offsetWidth - 8);
  const top = pointer.y + box.offsetHeight + 22 > innerHeight ? pointer.y - box.offsetHeight - 12 : pointer.y + 18;
  box.style.transform = `translate(${Math.max(8, left)}px, ${top}px)`;
}

document.addEventListener(
  "pointermove",
  (event) => {
    pointer.x = event.clientX;
    pointer.y = event.clientY;
  },
  { capture: true, passive: true },
);
