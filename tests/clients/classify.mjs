// Classifies texts (a JSON list, from stdin) with transformers.js, one at a time, and prints the probabilities:
//   node classify.mjs <folder with node_modules> <folder of an export> <dtype>
// It runs the WebAssembly of onnxruntime-web, as a browser does, and no native code.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const [packages, folder, dtype] = process.argv.slice(2);
const find = createRequire(join(packages, "here.js"));
const load = name => import(pathToFileURL(find.resolve(name)).href);

const runtime = await load("onnxruntime-web");
runtime.env.wasm.wasmPaths = new URL(".", pathToFileURL(find.resolve("onnxruntime-web"))).href;  // else from a server
runtime.env.wasm.numThreads = 1;
globalThis[Symbol.for("onnxruntime")] = runtime;  // transformers.js takes the one that is there
const { env, pipeline } = await load("@huggingface/transformers");
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const classify = await pipeline("text-classification", basename(folder), { dtype, device: "auto" });
const answers = [];
for (const text of JSON.parse(readFileSync(0, "utf8"))) {
  const found = await classify(text, { top_k: null });
  answers.push(Object.fromEntries(found.map(({ label, score }) => [label, score])));
}
console.log(JSON.stringify(answers));
process.exit(0);  // its worker would keep Node waiting
