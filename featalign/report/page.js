// What every page runs: figures from their data blocks, and the widgets that a page asks for by name.
const widgets = { features: featureBrowser };
const content = (element) => JSON.parse(element.nextElementSibling.textContent);
const dark = globalThis.matchMedia && matchMedia("(prefers-color-scheme: dark)").matches;

document.querySelectorAll("[data-widget]").forEach((root) => widgets[root.dataset.widget](root, content(root)));
document.addEventListener("keydown", (event) => {
  const search = document.querySelector(".features .search");
  if (event.key !== "/" || !search || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  event.preventDefault();
  search.focus();
});
document.querySelectorAll("[data-figure]").forEach((root) => {
  const figure = content(root), layout = figure.layout;
  if (dark) {
    Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
    layout.font = { ...layout.font, color: "#dde3e9" };
    if (layout.legend) layout.legend.bgcolor = "rgba(0,0,0,0)";
    ["xaxis", "yaxis"].forEach((name) => { layout[name] = layout[name] || {}; });
    Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key)).forEach((key) => {
      Object.assign(layout[key], { gridcolor: "#2c3742", zerolinecolor: "#42505d" });
    });
  }
  Plotly.newPlot(root, figure.data, layout, { displaylogo: false, responsive: true });
});
