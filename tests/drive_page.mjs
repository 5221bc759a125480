// SPDX-License-Identifier: Apache-2.0
// Opens a page that --html wrote, wide and narrow, light and dark, and prints what is seen as JSON:
//     node drive_page.mjs CHROMIUM FILE [FOLDER FOR SCREENSHOTS]

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const { chromium } = createRequire(import.meta.url)("playwright-core");
const [executablePath, file, screenshots] = process.argv.slice(2);

// What a person would see: boxes and lines, whether boxes overlap, and whether a button zooms.
function look() {
  const drawings = [...document.querySelectorAll("figure.zoomed")].map((figure) => {
    const svg = figure.querySelector("svg");
    const boxes = [...svg.querySelectorAll(".box rect")].map((each) => each.getBoundingClientRect());
    const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const before = svg.getAttribute("viewBox");
    figure.querySelector("[data-zoom=in]").click();
    const isZoomed = svg.getAttribute("viewBox") !== before;
    figure.querySelector("[data-zoom=all]").click();
    return {
      boxes: boxes.length,
      lines: svg.querySelectorAll(".edge path").length,
      overlaps: boxes.filter((a, index) => boxes.slice(index + 1).some((b) => overlap(a, b))).length,
      isZoomed,
    };
  });
  const style = getComputedStyle(document.body);
  return { drawings, overflow: document.documentElement.scrollWidth - innerWidth, background: style.backgroundColor };
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });
try {
  const found = { faults: [], views: {} };
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1200, 390]) {
      const page = await browser.newPage({ colorScheme, viewport: { width, height: 900 } });
      page.on("console", (message) => found.faults.push(message.text()));
      page.on("pageerror", (error) => found.faults.push(String(error)));
      page.on("request", (request) => request.url().startsWith("file:") || found.faults.push(request.url()));
      await page.goto(pathToFileURL(file).href);
      await page.evaluate(() => document.querySelectorAll("details").forEach((each) => (each.open = true)));
      found.views[`${colorScheme} ${width}`] = await page.evaluate(look);
      if (screenshots) {
        await page.screenshot({ path: `${screenshots}/${colorScheme}-${width}.png`, fullPage: true });
      }
      await page.close();
    }
  }
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
}
