// From the page's elements to numbers; the inverse of report/encoding.py.

const page = JSON.parse(element("facts-json").textContent);
const { steps, codes_per_step, undefined: undefinedCode, absent, byte_top, byte_missing, decades } = page.encoding;

function element(id) {
  return document.getElementById(id);
}

function loadArrays(name) {
  return inflate(element(`packed-${name}`).textContent);
}

async function inflate(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function decodeEntropy(code) {
  if (code >= undefinedCode) return NaN;
  const slot = code % codes_per_step;
  const within = slot ? (slot - 0.5) / (codes_per_step - 1) : 0;
  return ((code - slot) / codes_per_step + within) / steps;
}

const entropies = Float64Array.from({ length: 65536 }, (_, code) => decodeEntropy(code));
const powers = Float64Array.from({ length: 256 }, (_, code) =>
  code === byte_missing ? NaN : 10 ** ((code / byte_top - 1) * decades),
);

// A threshold as the code that stands for exactly this value.
function thresholdCode(threshold) {
  return Math.round(threshold * steps) * codes_per_step;
}
