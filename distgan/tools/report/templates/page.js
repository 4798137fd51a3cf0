// Sliders choose which grid of a figure is shown.
for (const slider of document.querySelectorAll('input[type="range"]')) {
  const figure = slider.parentElement, images = figure.querySelectorAll("img"), label = figure.querySelector("output");
  slider.addEventListener("input", () => {
    images.forEach((image, i) => { image.hidden = i !== Number(slider.value); });
    label.textContent = images[slider.value].dataset.kimg + " kimg";
  });
}

// The pointer over a chart reads its curves there, from the places of their points.
for (const chart of document.querySelectorAll("svg.chart")) {
  const label = chart.parentElement.querySelector("output"), cursor = chart.querySelector(".cursor");
  const legend = chart.parentElement.querySelector(".legend") ?? document.querySelector(".legend.shared");
  const values = legend ? [...legend.querySelectorAll("output")] : [];
  const { left, right, top, bottom, x0, x1, y0, y1, log } =
    Object.fromEntries(Object.entries(chart.dataset).map(([name, value]) => [name, Number(value)]));
  const curves = [...chart.querySelectorAll("polyline")].map((line) => ({
    name: line.dataset.name, points: line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)),
  }));
  const names = (legend ? [...legend.querySelectorAll("span")] : []).map((key) => key.dataset.name);
  const nearest = (points, x) => points.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));
  const value = (y) => {
    const height = y0 + ((bottom - y) / (bottom - top)) * (y1 - y0);
    return "log" in chart.dataset ? 10 ** height : height;
  };
  chart.addEventListener("pointermove", (event) => {
    if (!curves.length) return;
    const box = chart.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const at = nearest(curves[0].points, Math.min(Math.max(x, left), right))[0];
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    const kimg = (x0 + ((at - left) / (right - left)) * (x1 - x0)).toPrecision(4) + " kimg";
    const read = curves.map(({ points }) => value(nearest(points, at)[1]).toPrecision(3));
    label.textContent = values.length ? kimg : `${read[0]} at ${kimg}`;
    curves.forEach(({ name }, i) => { if (values.length) values[names.indexOf(name)].textContent = read[i]; });
  });
  chart.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    for (const place of [label, ...values]) place.textContent = "";
  });
}
