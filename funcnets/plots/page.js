"use strict";
for (const chart of document.querySelectorAll(".chart")) {
  const data = JSON.parse(chart.dataset.values);
  const svg = chart.querySelector("svg"), line = svg.querySelector(".pointer");
  const tip = chart.querySelector(".tip");
  let shown = -1;
  const hide = () => { tip.hidden = true; line.setAttribute("visibility", "hidden"); };
  const show = index => {
    shown = Math.max(0, Math.min(data.places.length - 1, index));
    const place = data.places[shown];
    line.setAttribute("x1", place);
    line.setAttribute("x2", place);
    line.setAttribute("visibility", "visible");
    const title = document.createElement("b");
    title.textContent = data.titles[shown];
    const rows = data.values[shown].map(([name, color, value]) => {
      const row = document.createElement("span"), swatch = document.createElement("span");
      row.className = "row";
      swatch.className = `swatch c${color}`;
      row.append(swatch, `${name} ${value}`);
      return row;
    });
    tip.replaceChildren(title, ...rows);
    tip.hidden = false;
    const isRight = place > data.width / 2, share = 100 * place / data.width;
    tip.style.left = isRight ? "auto" : `calc(${share}% + 10px)`;
    tip.style.right = isRight ? `calc(${100 - share}% + 10px)` : "auto";
  };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * data.width;
    const distances = data.places.map(place => Math.abs(place - x));
    show(distances.indexOf(Math.min(...distances)));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { show(shown + step); event.preventDefault(); }
  });
}
