// The results table: headings are buttons, and rows stand in the order that Python keeps.

/** A cell as one line: tabs and line breaks would end it. */
function oneLine(cell) {
  return String(cell).split(/\s+/).filter(Boolean).join(" ");
}

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function render({ model, el }) {
  const head = make("thead");
  const body = make("tbody");
  const notes = make("div", { class: "ql-table-notes" });
  const failed = "The browser refuses; mark the table and press Ctrl+C";
  const copies = make("div", { class: "ql-copies" },
    ...copyButton("Copy as Markdown", () => copied(markdown()), failed),
    ...copyButton("Copy as TSV", () => copied(tsv()), failed));
  keepKeys(el);
  el.append(make("div", { class: "ql-scroll" }, make("table", {}, head, body)), copies, notes);

  /** The rows as they stand, the reason of one without figures after its status. */
  function shownRows() {
    const { rows, reasons } = model.get("content");
    return model.get("order").filter((i) => i < rows.length).map((i) => (reasons[i]
      ? [...rows[i].slice(0, -1), `${rows[i].at(-1)}: ${reasons[i]}`] : rows[i]));
  }

  function markdown() {
    const { headers, numbers } = model.get("content");
    const line = (cells) => `| ${cells.map((cell) => oneLine(cell).replace(/[\\|*_<`]/g, "\\$&")).join(" | ")} |`;
    const rule = `|${numbers.map((number) => (number ? "---:" : "---")).join("|")}|`;
    return [line(headers), rule, ...shownRows().map(line)].join("\n") + "\n";
  }

  function tsv() {
    const lines = [model.get("content").headers, ...shownRows()];
    return lines.map((cells) => cells.map(oneLine).join("\t")).join("\n") + "\n";
  }

  const sortOf = (header) => {
    if (model.get("sorted_by") !== header) return "none";
    return model.get("descending") ? "descending" : "ascending";
  };

  function sortBy(header) {
    const next = NEXT[sortOf(header)];
    model.set("sorted_by", next === "none" ? "" : header);
    model.set("descending", next === "descending");
    model.save_changes();
  }

  let drawn = "";

  // Rows come while a run goes on: headings that are the same stay, and so does the focus in them.
  function drawHead() {
    const { headers, numbers } = model.get("content");
    const wanted = JSON.stringify([headers, numbers]);
    if (wanted === drawn) return;
    drawn = wanted;
    const cells = headers.map((header, i) => make(
      "th", { scope: "col", class: numbers[i] ? "ql-number" : null },
      make("button", { type: "button", title: `Sort by ${header}`, onclick: () => sortBy(header) },
        header, make("span", { class: "ql-arrow", "aria-hidden": "true" })),
    ));
    head.replaceChildren(...(cells.length ? [make("tr", {}, ...cells)] : []));
    markHead();
  }

  function markHead() {
    const { headers } = model.get("content");
    headers.forEach((header, i) => {
      head.rows[0].cells[i].setAttribute("aria-sort", sortOf(header));
    });
  }

  function drawBody() {
    const { rows, reasons, numbers } = model.get("content");
    copies.hidden = !rows.length;
    body.replaceChildren(...model.get("order").filter((i) => i < rows.length).map((i) => {
      if (reasons[i]) return failedRow(rows[i], reasons[i]);
      const advised = i === model.get("marked");
      return make("tr", { class: advised ? "ql-marked" : null }, ...rows[i].map((cell, column) => column === 0
        ? make("th", { scope: "row" }, cell)
        : make("td", { class: numbers[column] ? "ql-number" : null }, cell)));
    }));
  }

  // Where the others have figures it says why it has none.
  function failedRow(row, reason) {
    const said = `${row[row.length - 1]}: ${reason}`;
    return make("tr", { class: "ql-failed" },
      make("th", { scope: "row" }, row[0]), make("td", { colspan: row.length - 1 }, said));
  }

  function drawNotes() {
    notes.replaceChildren(...model.get("content").notes.map((text) => make("p", {}, text)));
  }

  model.on("change:content", () => { drawHead(); drawBody(); drawNotes(); });
  model.on("change:order", drawBody);
  model.on("change:marked", drawBody);
  model.on("change:sorted_by", markHead);
  model.on("change:descending", markHead);
  drawHead();
  drawBody();
  drawNotes();
}

export default { render };
