// The page at work: what a change asks to be drawn again, and what people press.

const THRESHOLDS = Object.keys(SELECTIONS);
const STREAM = ["result", "stream"];
const MAP = [...STREAM, "beside", "entropy", "map", "theme", ...THRESHOLDS];
const HEAD = [...STREAM, "layer", "head"];
// What draws, on which states it depends, and where: a part out of sight waits until it is scrolled to.
const PARTS = [
  { draw: drawOverview, needs: MAP, where: "overview-map" },
  { draw: drawCounts, needs: [...STREAM, "entropy", ...THRESHOLDS] },
  { draw: drawBars, needs: [...STREAM, "entropy", ...THRESHOLDS], where: "overview-bars" },
  { draw: drawCursor, needs: [...STREAM, "layer", "pair"], where: "overview-map" },
  { draw: drawBeside, needs: MAP, where: "beside-map" },
  { draw: drawBesideCursor, needs: [...STREAM, "beside", "layer", "pair"], where: "beside-map" },
  { draw: drawHeadings, needs: [...HEAD, "entropy", ...THRESHOLDS] },
  { draw: drawHeads, needs: [...STREAM, "entropy", "layer", "theme", ...THRESHOLDS], where: "heads-map" },
  { draw: drawHeadsCursor, needs: [...HEAD, "pair"], where: "heads-map" },
  { draw: drawPair, needs: [...HEAD, "pair", "details", ...THRESHOLDS] },
  ...ENTROPIES.flatMap((entropy) => [
    { draw: () => drawCurve(entropy), needs: [...HEAD, "details", ...THRESHOLDS], where: `${entropy}-curve` },
    { draw: () => drawCurveCursor(entropy), needs: ["pair"], where: `${entropy}-curve` },
  ]),
  { draw: drawNorms, needs: [...HEAD, "details"], where: "norms" },
  { draw: drawNormsCursor, needs: ["pair", "details"], where: "norms" },
  { draw: drawSpectrum, needs: [...HEAD, "details"], where: "spectrum" },
  { draw: drawPeriods, needs: [...HEAD, "details"], where: "periods" },
  { draw: drawPeriodsCursor, needs: ["pair", "details"], where: "periods" },
  { draw: drawTable, needs: [...HEAD, "details", "table", ...THRESHOLDS], where: "values" },
].filter(({ where }) => !where || element(where));
const DETAILED = ["norms", "spectrum", "periods", "values"];
const SIDEWAYS = { ArrowLeft: ["pair", -1], ArrowRight: ["pair", 1] };
const OVER_LAYERS = { ...SIDEWAYS, ArrowUp: ["layer", 1], ArrowDown: ["layer", -1] };
const ARROWS = {
  "overview-map": OVER_LAYERS,
  "beside-map": OVER_LAYERS,
  "heads-map": { ...SIDEWAYS, ArrowUp: ["head", 1], ArrowDown: ["head", -1] },
};
const PAGE_KEYS = { PageUp: ["head", 1], PageDown: ["head", -1] };
const HEAD_KEYS = { "[": ["head", -1], "]": ["head", 1] };
// Milliseconds without a change before charts out of sight are drawn, and between two of them.
const [REST, STEP] = [400, 30];
const inSight = new Set();
let resting = null;
let view = null;
// The result whose map stands beside, if one does.
let beside = null;

function choose(changes, asStep = true) {
  const next = settled({ ...state, ...changes });
  if (Object.keys(next).every((name) => next[name] === state[name])) return;
  state = next;
  remember(asStep);
  show();
}

async function show() {
  state = settled(state);
  const wanted = state;
  const data = await loadStream(wanted.result, wanted.stream);
  const other = wanted.beside < 0 ? null : await loadStream(wanted.beside, wanted.stream);
  if (wanted !== state) return;
  const first = view === null;
  view = data;
  beside = other;
  state.head = nearestHead(view, state.layer, state.head);
  applyTheme();
  writeControls();
  if (first) {
    drawOverview();
    await nextPaint();
    watchSight();
  }
  drawParts();
  if (!view.read) await loadDetails(view).then(drawParts);
}

// What is out of sight, one chart at a time once nobody does anything: a chart that is begun as the page goes to the
// printer comes too late for it.
function drawNext() {
  const stale = PARTS.find((part) => isReady(part, true) && isStale(part));
  if (stale) drawPart(stale);
  if (stale || drawNextSweep()) rest(STEP);
}

function rest(time) {
  clearTimeout(resting);
  resting = setTimeout(drawNext, time);
}

function drawParts() {
  if (view.name !== `${state.result}-${state.stream}`) return;
  for (const part of PARTS) if (isReady(part, printing) && isStale(part)) drawPart(part);
  rest(REST);
}

function isReady({ where }, everywhere) {
  return !where || ((everywhere || inSight.has(where)) && (view.read || !DETAILED.includes(where)));
}

function isStale({ needs, drawn }) {
  const now = drawnStates();
  return !needs.every((name) => drawn?.[name] === now[name]);
}

function drawPart(part) {
  part.drawn = drawnStates();
  part.draw();
}

function drawnStates() {
  return { ...state, theme: isDark(), details: Boolean(view.read), table: element("values").open };
}

function watchSight() {
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) inSight[isIntersecting ? "add" : "delete"](target.id);
      drawParts();
    },
    { rootMargin: "60px" },
  );
  for (const { where } of PARTS) {
    if (!where) continue;
    if (isNear(element(where))) inSight.add(where);
    watcher.observe(element(where));
  }
}

function isNear(target) {
  const { top, bottom } = target.getBoundingClientRect();
  return bottom > -60 && top < innerHeight + 60;
}

function nextPaint() {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}

// Indices that the result has; layers may have fewer heads than the widest, see nearestHead.
function settled(wanted) {
  const result = page.results[wanted.result];
  return {
    ...wanted,
    layer: clamp(wanted.layer, result.layers.length),
    head: clamp(wanted.head, result.streams[wanted.stream].heads),
    pair: clamp(wanted.pair, result.pairs),
  };
}

function nearestHead(data, layer, head) {
  while (head > 0 && !isHead(data, layer, head)) head--;
  return head;
}

function writeControls() {
  for (const name of ["stream", "entropy"])
    document.querySelector(`[name=${name}][value=${state[name]}]`).checked = true;
  element("map").value = state.map;
  for (const name of THRESHOLDS) element(name).value = state[name];
  if (element("result")) {
    element("result").value = state.result;
    element("beside").value = state.beside;
    element("beside-part").hidden = element("overview-name").hidden = state.beside < 0;
    element("beside-name").textContent = page.results[state.beside]?.name ?? "";
    element("explorer").classList.toggle("compared", state.beside >= 0);
  }
  document.querySelectorAll("[data-result]").forEach((part) => {
    part.hidden = Number(part.dataset.result) !== state.result;
  });
}

const darkByDefault = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return !printing && (state.theme === "dark" || (state.theme === "auto" && darkByDefault.matches));
}

function applyTheme() {
  const theme = isDark() ? "dark" : "light";
  if (document.documentElement.dataset.theme === theme) return;
  document.documentElement.dataset.theme = theme;
  element("theme").setAttribute("aria-pressed", String(theme === "dark"));
  repaint();
}

function changeControl({ target }) {
  if (target.name === "stream") changeStream(target.value);
  if (target.name === "entropy") changeEntropy(target.value);
  if (target.id === "beside") choose({ beside: Number(target.value) });
  if (target.id === "map") choose({ map: target.value, entropy: SELECTIONS[target.value]?.entropy ?? state.entropy });
}

// From a query head to the key head it reads, and back to the first that reads it.
function changeStream(stream) {
  const heads = (name) => page.results[state.result].streams[name].heads;
  choose({ stream, head: Math.floor((state.head * heads(stream)) / heads(state.stream)) });
}

function changeEntropy(entropy) {
  const fits = !(state.map in SELECTIONS) || SELECTIONS[state.map].entropy === entropy;
  const other = page.selections.find((one) => one.entropy === entropy).key;
  choose({ entropy, map: fits ? state.map : other });
}

function pressKey(event, keys) {
  const step = event.ctrlKey || event.metaKey ? undefined : keys[event.key];
  if (!step) return;
  event.preventDefault();
  choose({ [step[0]]: state[step[0]] + step[1] }, false);
}

async function copyText(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => {
      button.textContent = before;
    }, 1500);
    return true;
  } catch {
    return false;
  }
}

async function copyLink() {
  commit();
  const address = location.href.replace(/#.*$/, "") + writeState();
  const box = element("link");
  box.value = address;
  box.hidden = await copyText(address, element("copy-link"));
  if (!box.hidden) box.select();
}

async function copyCitation() {
  if (!(await copyText(element("citation").textContent, element("copy-citation"))))
    getSelection().selectAllChildren(element("citation"));
}

function listen() {
  element("controls").addEventListener("change", changeControl);
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const name of THRESHOLDS)
    element(name).addEventListener("input", ({ target }) =>
      choose({ [name]: onGrid(target.value, state[name]) }, false),
    );
  for (const id in ARROWS)
    element(id)?.addEventListener("keydown", (event) => pressKey(event, { ...ARROWS[id], ...PAGE_KEYS }));
  document.addEventListener("keydown", (event) =>
    pressKey(event, event.target.closest("select, [type=text]") ? {} : HEAD_KEYS),
  );
  element("previous-head").addEventListener("click", () => choose({ head: state.head - 1 }));
  element("next-head").addEventListener("click", () => choose({ head: state.head + 1 }));
  element("result")?.addEventListener("change", ({ target }) => choose({ result: Number(target.value) }));
  element("theme").addEventListener("click", () => choose({ theme: isDark() ? "light" : "dark" }));
  element("copy-link").addEventListener("click", copyLink);
  element("copy-citation").addEventListener("click", copyCitation);
  element("values").addEventListener("toggle", drawParts);
  addEventListener("beforeprint", beforePrint);
  addEventListener("afterprint", afterPrint);
  document.querySelectorAll("[data-skip], .contents a").forEach((link) => link.addEventListener("click", goTo));
  darkByDefault.addEventListener("change", show);
  addEventListener("popstate", openAddress);
}

// Without the address, which holds the view.
function goTo(event) {
  const target = element(event.currentTarget.hash.slice(1));
  event.preventDefault();
  element("contents").open = false;
  target.scrollIntoView();
  target.focus({ preventScroll: true });
}

function openAddress() {
  clearTimeout(pending?.timer);
  pending = null;
  state = readState(location.hash);
  show();
}

function explainFailure(error) {
  element("failure").textContent = `This page could not be drawn (${error.message}); a browser of 2023 or later can.`;
  element("failure").hidden = false;
  throw error;
}

listen();
state = readState(location.hash);
applyTheme();
show().catch(explainFailure);
