// SPDX-License-Identifier: Apache-2.0
// Trains the GPT of train_in_browser.py, which serves this page, the models and the batches.

import * as ort from "./onnxruntime-web/ort.wasm.min.mjs";

const SAMPLE_EVERY = 20;
const SAMPLE_LENGTH = 160;
const PROMPT = "The ";
const TEMPERATURE = 0.7;

ort.env.wasm.wasmPaths = new URL("./onnxruntime-web/", import.meta.url).href;
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const element = (id) => document.getElementById(id);
const losses = [];
// What a program that drives this page looks at.
globalThis.training = { losses, sample: "", isDone: false };

async function load(path) {
  const response = await fetch(path);
  if (!response.ok) {
    throw new Error(`${path}: ${response.status} ${response.statusText}`);
  }
  return response;
}

async function session(path) {
  const bytes = new Uint8Array(await (await load(path)).arrayBuffer());
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}

function decode({ type, dims, data }) {
  const array = type === "int64" ? BigInt64Array.from(data, BigInt) : Float32Array.from(data);
  return new ort.Tensor(type, array, dims);
}

function draw(steps) {
  const top = Math.max(...losses);
  const points = losses.map((loss, index) => `${40 + (590 * index) / Math.max(1, steps - 1)},${250 - (240 * loss) / top}`);
  element("curve").setAttribute("points", points.join(" "));
  element("top").textContent = top.toFixed(2);
}

function choose(scores) {
  const top = Math.max(...scores);
  const weights = Array.from(scores, (score) => Math.exp((score - top) / TEMPERATURE));
  let rest = Math.random() * weights.reduce((sum, weight) => sum + weight, 0);
  return weights.findIndex((weight) => (rest -= weight) < 0);
}

async function write(forward, parameters, context) {
  const codes = Array.from(PROMPT, (character) => character.charCodeAt(0));
  const [output] = forward.outputNames;
  while (codes.length < SAMPLE_LENGTH) {
    const seen = codes.slice(-context);
    const tokens = new BigInt64Array(context);
    seen.forEach((code, index) => (tokens[index] = BigInt(code)));
    const results = await forward.run({ tokens: new ort.Tensor("int64", tokens, [1, context]), ...parameters });
    const { data, dims } = results[output];
    const width = dims[dims.length - 1];
    codes.push(choose(data.slice((seen.length - 1) * width, seen.length * width)));
  }
  return String.fromCharCode(...codes);
}

async function main() {
  const { steps, rows, context, state: initial } = await (await load("settings.json")).json();
  const batches = new BigInt64Array(await (await load("batches.bin")).arrayBuffer());
  const step = await session("training_step.onnx");
  const forward = await session("forward.onnx");
  const size = rows * context;
  const batch = (start) => new ort.Tensor("int64", batches.slice(start, start + size), [rows, context]);
  const state = Object.fromEntries(Object.entries(initial).map(([name, tensor]) => [name, decode(tensor)]));
  for (let number = 0; number < steps; ++number) {
    const start = 2 * size * number;
    const results = await step.run({ tokens: batch(start), targets: batch(start + size), ...state });
    const updated = Object.entries(results).filter(([name]) => name.endsWith(".updated"));
    for (const [name, value] of updated) {
      state[name.slice(0, -".updated".length)] = value;
    }
    losses.push(results.loss.data[0]);
    element("status").textContent = `Step ${number + 1} of ${steps}: loss ${losses.at(-1).toFixed(4)}`;
    draw(steps);
    if ((number + 1) % SAMPLE_EVERY === 0 || number + 1 === steps) {
      const parameters = Object.fromEntries(Object.entries(state).filter(([name]) => forward.inputNames.includes(name)));
      training.sample = await write(forward, parameters, context);
      element("sample").textContent = training.sample;
    }
  }
  training.isDone = true;
}

main().catch((error) => {
  element("error").textContent = `It stopped: ${error.message ?? error}`;
  training.isDone = true;
});
