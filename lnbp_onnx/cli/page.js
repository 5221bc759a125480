"use strict";
// Drawings are zoomed and moved by their viewBox, so that lines and letters stay sharp.
const LEGIBLE = 0.6;
for (const figure of document.querySelectorAll("figure.zoomed")) {
  const svg = figure.querySelector("svg");
  const box = svg.viewBox.baseVal;
  const all = [box.x, box.y, box.width, box.height];
  let [x, y, width, height] = all;
  const show = () => {
    svg.setAttribute("viewBox", [x, y, width, height].join(" "));
    // What is shown whole cannot be moved, and a finger scrolls the page.
    svg.style.touchAction = width < all[2] ? "none" : "pan-y";
  };
  const zoom = (factor, atX = 0.5, atY = 0.5) => {
    const bounded = Math.min(Math.max(factor, 60 / width), (2 * all[2]) / width);
    x += width * (1 - bounded) * atX;
    y += height * (1 - bounded) * atY;
    width *= bounded;
    height *= bounded;
    show();
  };
  const actions = {
    in: () => zoom(0.7),
    out: () => zoom(1 / 0.7),
    all: () => { [x, y, width, height] = all; show(); },
  };
  for (const button of figure.querySelectorAll("button")) {
    button.addEventListener("click", actions[button.dataset.zoom]);
  }
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const frame = svg.getBoundingClientRect();
    const at = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
    zoom(event.deltaY < 0 ? 0.85 : 1 / 0.85, ...at);
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => svg.setPointerCapture(event.pointerId));
  svg.addEventListener("pointermove", (event) => {
    if (!svg.hasPointerCapture(event.pointerId)) return;
    const scale = 1 / svg.getScreenCTM().a;
    x -= event.movementX * scale;
    y -= event.movementY * scale;
    show();
  });
  // On a narrow screen a small drawing begins at its node, so that it can be read.
  const node = svg.querySelector(".operator rect");
  const begin = () => {
    const scale = svg.getScreenCTM()?.a;
    if (!node || !scale || scale >= LEGIBLE || document.documentElement.clientWidth >= 960) return;
    const middle = [node.x.baseVal.value + node.width.baseVal.value / 2, node.y.baseVal.value + node.height.baseVal.value / 2];
    zoom(scale / LEGIBLE, (middle[0] - all[0]) / all[2], (middle[1] - all[1]) / all[3]);
  };
  const details = figure.closest("details");
  if (details.open) begin();
  else details.addEventListener("toggle", begin, { once: true });
}
