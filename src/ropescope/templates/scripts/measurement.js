// One stream of one result: its arrays, and what the maps show of them. Places are [layer, head, pair] in row order.

const ENTROPIES = ["spectrum_fe", "sequence_fe"];
const DETAILS = ["mean_norm", "dc_share", "dominant_period", "peak_share"];
// Undefined and absent pairs have the highest codes and satisfy no selection.
const HOLDS = { "<": (code, limit) => code < limit, ">": (code, limit) => code > limit && code < undefinedCode };
const SELECTIONS = Object.fromEntries(page.selections.map((one) => [one.key, { ...one, holds: HOLDS[one.sign] }]));
const loaded = new Map();

function loadStream(resultNumber, stream) {
  const name = `${resultNumber}-${stream}`;
  if (!loaded.has(name)) loaded.set(name, readStream(resultNumber, stream, name));
  return loaded.get(name);
}

async function readStream(resultNumber, stream, name) {
  const result = page.results[resultNumber];
  const facts = result.streams[stream];
  const size = result.layers.length * facts.heads * result.pairs;
  const codes = new Uint16Array(await loadArrays(`${name}-entropies`));
  const data = {
    result,
    facts,
    stream,
    name,
    size,
    layers: result.layers.length,
    heads: facts.heads,
    pairs: result.pairs,
  };
  data.codes = { spectrum_fe: codes.subarray(0, size), sequence_fe: codes.subarray(size) };
  data.present = data.codes.spectrum_fe.reduce((count, code) => count + (code !== absent), 0);
  data.maps = new Map();
  return data;
}

// What the first view does not need: the other values, their range, spectra and norms.
function loadDetails(data) {
  data.details ??= readDetails(data);
  return data.details;
}

async function readDetails(data) {
  const [details, spectra, norms] = await Promise.all(
    ["details", "spectra", "norms"].map((part) =>
      element(`packed-${data.name}-${part}`) ? loadArrays(`${data.name}-${part}`) : null,
    ),
  );
  const { size } = data;
  const read = {};
  DETAILS.forEach((name, place) => {
    read[name] = new Float32Array(details, 4 * size * place, size);
  });
  const range = new Uint16Array(details, 4 * size * DETAILS.length);
  ENTROPIES.forEach((name, place) => {
    read[name] = { low: range.subarray(2 * place * size), high: range.subarray((2 * place + 1) * size) };
  });
  read.spectra = new Uint8Array(spectra);
  if (norms) {
    const kept = data.facts.norms.heads.length;
    read.norms = { limits: new Float32Array(norms, 0, kept), codes: new Uint8Array(norms, 4 * kept) };
  }
  data.read = read;
  return read;
}

function place(data, layer, head, pair = 0) {
  return (layer * data.heads + head) * data.pairs + pair;
}

function isHead(data, layer, head) {
  if (head >= data.heads) return false;
  const start = place(data, layer, head);
  return data.codes.spectrum_fe.subarray(start, start + data.pairs).some((code) => code !== absent);
}

// Layer by pair, row by row. Means and minima are kept, shares follow the thresholds.
function overviewValues(data, state) {
  const selection = SELECTIONS[state.map];
  if (selection) return overHeads(data, selection.entropy, shareOf(selection, thresholdCode(state[state.map])));
  const key = `${state.entropy}-${state.map}`;
  if (!data.maps.has(key)) data.maps.set(key, overHeads(data, state.entropy, state.map === "mean" ? meanOf : lowestOf));
  return data.maps.get(key);
}

function overHeads(data, entropy, summarise) {
  const codes = data.codes[entropy];
  const values = new Float32Array(data.layers * data.pairs);
  for (let layer = 0; layer < data.layers; layer++) {
    for (let pair = 0; pair < data.pairs; pair++) {
      const first = place(data, layer, 0, pair);
      values[layer * data.pairs + pair] = summarise(codes, first, first + data.heads * data.pairs, data.pairs);
    }
  }
  return values;
}

function meanOf(codes, first, end, stride) {
  let sum = 0,
    count = 0;
  for (let i = first; i < end; i += stride) {
    if (codes[i] < undefinedCode) {
      sum += entropies[codes[i]];
      count++;
    }
  }
  return sum / count;
}

function lowestOf(codes, first, end, stride) {
  let lowest = undefinedCode;
  for (let i = first; i < end; i += stride) lowest = Math.min(lowest, codes[i]);
  return entropies[lowest];
}

// The head whose value the map of lowest heads shows; none where no head has one.
function headOfLowest(data, entropy, layer, pair) {
  const codes = Array.from({ length: data.heads }, (_, head) => data.codes[entropy][place(data, layer, head, pair)]);
  const lowest = Math.min(...codes);
  return lowest < undefinedCode ? codes.indexOf(lowest) : null;
}

// Cells of layers and pairs where heads have the pair, and none of them a value.
function undefinedCells(data, entropy) {
  data.undefinedCells ??= {};
  data.undefinedCells[entropy] ??= (() => {
    const least = overHeads(data, entropy, (codes, first, end, stride) => {
      let lowest = absent;
      for (let i = first; i < end; i += stride) lowest = Math.min(lowest, codes[i]);
      return lowest;
    });
    const cells = [...least.keys()].filter((cell) => least[cell] === undefinedCode);
    return { x: cells.map((cell) => cell % data.pairs), y: cells.map((cell) => Math.floor(cell / data.pairs)) };
  })();
  return data.undefinedCells[entropy];
}

function shareOf(selection, limit) {
  return (codes, first, end, stride) => {
    let held = 0,
      count = 0;
    for (let i = first; i < end; i += stride) {
      if (codes[i] !== absent) {
        held += selection.holds(codes[i], limit);
        count++;
      }
    }
    return held / count;
  };
}

// How many pairs of each layer a selection holds; kept for the threshold last asked for.
function layerCounts(data, name, threshold) {
  data.counts ??= {};
  if (data.counts[name]?.threshold !== threshold)
    data.counts[name] = { threshold, counts: countLayers(data, name, threshold) };
  return data.counts[name].counts;
}

function countLayers(data, name, threshold) {
  const { entropy, holds } = SELECTIONS[name];
  const codes = data.codes[entropy],
    limit = thresholdCode(threshold),
    row = data.heads * data.pairs;
  const counts = new Uint32Array(data.layers);
  for (let layer = 0; layer < data.layers; layer++) {
    for (let i = layer * row; i < (layer + 1) * row; i++) counts[layer] += holds(codes[i], limit);
  }
  return counts;
}

function selectionsOf(data, state, at) {
  return Object.keys(SELECTIONS).filter((name) => {
    const { entropy, holds } = SELECTIONS[name];
    return holds(data.codes[entropy][at], thresholdCode(state[name]));
  });
}
