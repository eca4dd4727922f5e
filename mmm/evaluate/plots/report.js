for (const plot of document.querySelectorAll(".plot")) {
  const values = JSON.parse(plot.dataset.values), drawing = plot.querySelector("svg"), said = plot.querySelector("output");
  const cursor = plot.querySelector(".cursor"), steps = [...new Set(values.series.flat().map((point) => point[0]))].sort((a, b) => a - b);
  let at = steps.length - 1;
  const nearest = (points, step) => points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
  function show(number) {
    at = Math.max(0, Math.min(steps.length - 1, number));
    const step = steps[at], x = values.left + ((values.right - values.left) * step) / values.last;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    const parts = values.series.map((points, run) => {
      if (!points.length) return "";
      return (values.series.length > 1 ? values.names[run] + " " : "") + nearest(points, step)[1].toPrecision(5);
    });
    said.textContent = "step " + step.toLocaleString("en") + ": " + parts.filter(Boolean).join(", ");
  }
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect(), across = ((event.clientX - box.left) / box.width) * drawing.viewBox.baseVal.width;
    const step = ((across - values.left) / (values.right - values.left)) * values.last;
    show(steps.indexOf(steps.reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best))));
  });
  drawing.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
    if (!move) return;
    show(at + move);
    event.preventDefault();
  });
}
