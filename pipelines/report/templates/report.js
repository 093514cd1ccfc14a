// Draws the charts of the report in the colours of the theme, those in view first; arrow keys walk through their
// points.
"use strict";

(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const said = document.getElementById("said");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 600px)");
  const COLOURS = new Set(["color", "bgcolor", "bordercolor", "fgcolor", "gridcolor", "colorscale"]);
  const drawn = new Set();

  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function themed(value, colour = false) {
    if (Array.isArray(value)) return value.map((one) => themed(one, colour));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, themed(one, COLOURS.has(key))]));
    }
    return colour && typeof value === "string" && value.startsWith("$") ? token(value.slice(1)) : value;
  }

  function axis(own) {
    const grid = token("grid");
    const base = { automargin: true, fixedrange: true, gridcolor: grid, zerolinecolor: grid, linecolor: grid };
    return { ...base, ...own, title: { standoff: 8, ...(own?.title ?? {}) } };
  }

  function layout(plot, own) {
    const text = token("text");
    return {
      ...own,
      height: Number(plot.dataset.height),
      margin: { l: 8, r: 12, t: 8, b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: token("font"), size: narrow.matches ? 11 : 12, color: text },
      hoverlabel: { bgcolor: token("surface-2"), bordercolor: token("border-strong"), font: { color: text } },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", traceorder: "normal" },
      dragmode: false,
      xaxis: axis(own.xaxis),
      yaxis: axis(own.yaxis),
    };
  }

  function draw(plot) {
    const spec = themed(specs[plot.id]);
    if (narrow.matches) for (const trace of spec.data) trace.showscale = false;
    Plotly.react(plot, spec.data, layout(plot, spec.layout), { displayModeBar: false, responsive: true });
    drawn.add(plot);
  }

  // Plotly reads entities in texts; what is spoken is plain.
  const spoken = (text) => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

  function points(trace) {
    if (trace.type !== "heatmap") return trace.hovertext.map((text, at) => [at, text]);
    return trace.text.flatMap((row, y) => row.map((text, x) => [[y, x], text]));
  }

  function walk(plot, event) {
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    const jump = event.key === "Home" || event.key === "End";
    if (event.key === "Escape") {
      Plotly.Fx.unhover(plot);
      return;
    }
    if (!jump && !(event.key in moves)) return;
    event.preventDefault();
    const traces = specs[plot.id].data;
    const [down, right] = moves[event.key] ?? [0, 0];
    const at = plot.place ?? { trace: 0, point: -1 };
    const trace = Math.max(0, Math.min(traces.length - 1, at.trace + down));
    const all = points(traces[trace]);
    let point = Math.max(0, Math.min(all.length - 1, at.point + right));
    if (jump) point = event.key === "Home" ? 0 : all.length - 1;
    plot.place = { trace, point };
    Plotly.Fx.hover(plot, [{ curveNumber: trace, pointNumber: all[point][0] }]);
    said.textContent = spoken(all[point][1]);
  }

  const plots = [...document.querySelectorAll(".plot")];
  for (const plot of plots) plot.style.height = `${plot.dataset.height}px`;
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const hidden = entry.target.closest("details:not([open])");
        if (entry.isIntersecting && !hidden && !drawn.has(entry.target)) {
          seen.unobserve(entry.target);
          draw(entry.target);
        }
      }
    },
    { rootMargin: "400px" },
  );
  for (const plot of plots) {
    seen.observe(plot);
    plot.addEventListener("keydown", (event) => walk(plot, event));
    plot.addEventListener("blur", () => drawn.has(plot) && Plotly.Fx.unhover(plot));
  }
  // What is not in view yet follows while the page idles, one at a time.
  function rest() {
    const next = plots.find((plot) => !drawn.has(plot) && !plot.closest("details:not([open])"));
    if (!next) return;
    draw(next);
    later(rest);
  }
  const later = globalThis.requestIdleCallback ?? ((work) => setTimeout(work, 50));
  later(rest);
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", () => later(rest));
  const again = () => drawn.forEach(draw);
  dark.addEventListener("change", again);
  narrow.addEventListener("change", again);
  addEventListener("beforeprint", () => plots.filter((plot) => !drawn.has(plot)).forEach(draw));
})();
