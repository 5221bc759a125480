"use strict";
// Drawings are zoomed and moved by their viewBox, so that lines and letters stay sharp.
for (const figure of document.querySelectorAll("figure.zoomed")) {
  const svg = figure.querySelector("svg");
  const whole = svg.viewBox.baseVal;
  const all = [whole.x, whole.y, whole.width, whole.height];
  let [x, y, width, height] = all;
  const show = () => svg.setAttribute("viewBox", [x, y, width, height].join(" "));
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
    zoom(event.deltaY < 0 ? 0.85 : 1 / 0.85, (event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height);
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => svg.setPointerCapture(event.pointerId));
  svg.addEventListener("pointermove", (event) => {
    if (!svg.hasPointerCapture(event.pointerId)) return;
    const scale = 1 / svg.getScreenCTM().a;
    x -= event.movementX * scale;
    y -= event.movementY * scale;
    show();
  });
}
