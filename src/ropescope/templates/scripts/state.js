// What is in view, and the address that brings it back.

const CHOICES = {
  stream: ["query", "key"],
  entropy: ENTROPIES,
  map: ["mean", "lowest", ...Object.keys(SELECTIONS)],
  theme: ["auto", "light", "dark"],
};
const COMMIT_DELAY = 150;
let state = defaultState();
let pending = null;

function defaultState(result = 0, stream = "query") {
  const [layer, head, pair] = page.results[result].streams[stream].start;
  const thresholds = Object.fromEntries(page.selections.map((one) => [one.key, one.threshold]));
  const start = { result, beside: -1, stream, layer, head, pair };
  return { ...start, entropy: "spectrum_fe", map: "mean", theme: "auto", ...thresholds };
}

// A state that the page can show, whatever the address says.
function readState(hash) {
  const given = Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
  const stream = CHOICES.stream.includes(given.stream) ? given.stream : "query";
  const read = defaultState(whole(given.result, page.results.length, 0), stream);
  for (const name in CHOICES) if (CHOICES[name].includes(given[name])) read[name] = given[name];
  read.beside = whole(given.beside, page.results.length, -1);
  const result = page.results[read.result];
  const layer = result.layers.indexOf(whole(given.layer, Infinity, -1));
  if (layer >= 0) read.layer = layer;
  read.head = whole(given.head, result.streams[stream].heads, layer >= 0 ? 0 : read.head);
  read.pair = whole(given.pair, result.pairs, read.pair);
  for (const name in SELECTIONS) read[name] = onGrid(given[name], read[name]);
  if (read.map in SELECTIONS) read.entropy = SELECTIONS[read.map].entropy;
  return read;
}

function whole(text, end, otherwise) {
  return /^\d{1,6}$/.test(text ?? "") && Number(text) < end ? Number(text) : otherwise;
}

function onGrid(text, otherwise) {
  const value = Math.round(Number(text) * steps) / steps;
  return /^[\d.]+$/.test(text ?? "") && value >= 0 && value <= 1 ? value : otherwise;
}

function writeState() {
  const shown = { ...state, layer: page.results[state.result].layers[state.layer] };
  return `#${new URLSearchParams(shown)}`;
}

// Browsers refuse many addresses a second, so the last one of a burst is written.
function remember(asStep) {
  clearTimeout(pending?.timer);
  const step = asStep || pending?.step;
  pending = { step, timer: setTimeout(commit, COMMIT_DELAY) };
}

function commit() {
  if (!pending) return;
  clearTimeout(pending.timer);
  const address = writeState();
  if (address !== location.hash) history[pending.step ? "pushState" : "replaceState"](null, "", address);
  pending = null;
}
