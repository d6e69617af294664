// A panel's title. It keeps keys for its panel: JupyterLab takes the arrow keys of a selection list
// for steps from cell to cell.

function render({ model, el }) {
  el.append(make("h3", { class: "ql-title" }, model.get("title")));
  let asked = requestAnimationFrame(function keep() {
    const panel = el.closest(".ql-panel");
    if (panel) keepKeys(panel);
    else asked = requestAnimationFrame(keep); // not in the page yet
  });
  return () => cancelAnimationFrame(asked);
}

export default { render };
