// The runs under a folder: a checkbox chooses one, its name opens it. Python sends every word.

function render({ model, el }) {
  const head = make("thead");
  const body = make("tbody");
  keepKeys(el);
  el.append(make("div", { class: "ql-scroll" },
    make("table", { "aria-label": "Runs" }, head, body)));

  function choose(path, wanted) {
    const others = model.get("chosen").filter((other) => other !== path);
    model.set("chosen", wanted ? [...others, path] : others);
    model.save_changes();
  }

  function drawRow(row) {
    const box = make("input", { type: "checkbox", "aria-label": `Choose ${row.cells[0]}`,
      onchange: () => choose(row.path, box.checked) });
    box.checked = model.get("chosen").includes(row.path);
    box.dataset.path = row.path;
    const open = make("button", { type: "button", class: "ql-open", disabled: Boolean(row.reason),
      title: row.reason ?? `Open ${row.path}`, onclick: () => model.send({ open: row.path }) }, row.cells[0]);
    const cells = row.reason
      ? [make("td", { colspan: row.cells.length - 1, class: "ql-why" }, row.reason)]
      : row.cells.slice(1).map((cell) => make("td", {}, cell));
    return make("tr", {}, make("td", {}, box), make("th", { scope: "row" }, open), ...cells);
  }

  function draw() {
    const { headers, rows } = model.get("content");
    const kept = body.contains(document.activeElement) ? document.activeElement.closest("tr")?.rowIndex : null;
    head.replaceChildren(...(rows.length ? [make("tr", {}, make("td", {}),
      ...headers.map((header) => make("th", { scope: "col" }, header)))] : []));
    body.replaceChildren(...rows.map(drawRow));
    if (kept) body.rows[Math.min(kept, rows.length) - 1]?.querySelector("input").focus();
  }

  function mark() {
    for (const box of body.querySelectorAll("input")) {
      box.checked = model.get("chosen").includes(box.dataset.path);
    }
  }

  model.on("change:content", draw);
  model.on("change:chosen", mark);
  draw();
}

export default { render };
