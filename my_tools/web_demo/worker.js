// Runs the detector in a worker, so that the page stays responsive.

import { Detector } from './detector.js';

let detector;

async function open({ site, base, engine, threads }) {
  const failures = [];
  for (const choice of await choices(engine)) {
    try {
      detector = await Detector.open(site, base, choice, threads);
      return { engine: choice, threads, failures };
    } catch (error) {
      failures.push(`${choice}: ${error.message}`);
    }
  }
  throw new Error(failures.join('; '));
}

// WebGPU if available, unless WASM is chosen; WASM runs everywhere.
async function choices(engine) {
  if (engine === 'wasm' || !navigator.gpu) return ['wasm'];
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return adapter ? ['webgpu', 'wasm'] : ['wasm'];
}

const tasks = {
  open,
  detect: ({ pixels, width, height }) => detector.detect(new Uint8ClampedArray(pixels), width, height),
};

self.addEventListener('message', async ({ data }) => {
  try {
    self.postMessage({ id: data.id, result: await tasks[data.task](data) });
  } catch (error) {
    self.postMessage({ id: data.id, error: error.message || String(error) });
  }
});
