"use strict";
(() => {
  const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-family", "text-anchor"];
  const SCALE = 3;

  // A drawing alone has no style sheet: what the page gives each of its parts is written into the copy.
  function standalone(svg) {
    const copy = svg.cloneNode(true);
    const parts = svg.querySelectorAll("*");
    copy.querySelectorAll("*").forEach((part, index) => {
      const style = getComputedStyle(parts[index]);
      for (const name of STYLES) part.style.setProperty(name, style.getPropertyValue(name));
    });
    const { width, height } = svg.viewBox.baseVal;
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    return { width, height, text: new XMLSerializer().serializeToString(copy) };
  }

  function picture(svg) {
    const { width, height, text } = standalone(svg);
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onerror = () => reject(new Error("The chart cannot be drawn."));
      image.onload = () => {
        const canvas = document.createElement("canvas");
        canvas.width = SCALE * width;
        canvas.height = SCALE * height;
        const drawing = canvas.getContext("2d");
        drawing.fillStyle = getComputedStyle(document.body).backgroundColor;
        drawing.fillRect(0, 0, canvas.width, canvas.height);
        drawing.drawImage(image, 0, 0, canvas.width, canvas.height);
        resolve(canvas.toDataURL("image/png"));
      };
      image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
    });
  }

  for (const svg of document.querySelectorAll("svg.chart")) {
    const button = document.createElement("button");
    const name = svg.querySelector("title").id.replace(/-t$/, "");
    button.type = "button";
    button.className = "save";
    button.textContent = "Save as PNG";
    button.setAttribute("aria-label", "Save as PNG: " + svg.querySelector("title").textContent);
    button.addEventListener("click", async () => {
      const link = document.createElement("a");
      link.href = await picture(svg);
      link.download = name + ".png";
      link.click();
    });
    svg.after(button);
  }

  // Paper cannot be unfolded.
  const folded = () => document.querySelectorAll("details:not([open])");
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...folded()];
    for (const part of unfolded) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of unfolded) part.open = false;
  });
})();
