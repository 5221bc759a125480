// SPDX-License-Identifier: Apache-2.0
// Runs a model in ONNX Runtime Web for runtimes.py: a line of JSON in, a line of JSON out, tensors by name
// as {type, dims, data} with the data in base64.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const ort = load("onnxruntime-web");
const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

function load(name) {
  try {
    return createRequire(import.meta.url)(name);
  } catch (error) {
    console.error(`Error: this needs the package ${name} (npm install --no-save --no-package-lock ${name}).`);
    process.exit(2);
  }
}

function decode({ type, dims, data }) {
  const bytes = Uint8Array.from(Buffer.from(data, "base64"));
  return new ort.Tensor(type, new ARRAYS[type](bytes.buffer), dims);
}

function encode({ type, dims, data }) {
  return { type, dims, data: Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64") };
}

function mapValues(object, change) {
  return Object.fromEntries(Object.entries(object).map(([name, value]) => [name, change(value)]));
}

const session = await ort.InferenceSession.create(process.argv[2], { executionProviders: ["wasm"] });
for await (const line of createInterface({ input: process.stdin })) {
  const results = await session.run(mapValues(JSON.parse(line), decode));
  process.stdout.write(JSON.stringify(mapValues(results, encode)) + "\n");
}
