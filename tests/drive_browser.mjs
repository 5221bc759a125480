// SPDX-License-Identifier: Apache-2.0
// Opens the page of examples/train_in_browser.py, waits for its end, and prints what it came to as JSON:
//     node drive_browser.mjs CHROMIUM ADDRESS [SCREENSHOT]

import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)("playwright-core");
const [executablePath, address, screenshot] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });
try {
  const page = await browser.newPage({ viewport: { width: 800, height: 600 } });
  const faults = [];
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("pageerror", (error) => faults.push(String(error)));
  await page.goto(address);
  await page.waitForFunction("globalThis.training?.isDone", null, { timeout: 120_000 });
  const found = await page.evaluate("({ ...training, error: document.getElementById('error').textContent })");
  if (screenshot) {
    await page.screenshot({ path: screenshot, fullPage: true });
  }
  console.log(JSON.stringify({ ...found, faults }));
} finally {
  await browser.close();
}
