// The pictures of a comparison: a grid, and any two under a slider with their difference.
// Python sends small pictures and every word; whole pictures and differences are asked for.

const KEPT = 32; // whole pictures held in the page at a time
const SMALLEST = 160; // pixels: the longer side of the small pictures that come unasked
const SIDES = { small: 160, medium: 256, large: 512 }; // CSS pixels, where they aren't to fit
const ROW_HEAD = 146; // CSS pixels of the column of prompts, with what is around it
const CELL_PADDING = 14;
const LEAST = 60; // CSS pixels of a picture that is to fit: five columns on a page of 700
const NARROW = 80; // CSS pixels of a column below which its longest words need smaller letters

/** Pictures by digest: small ones at hand, whole ones and differences on demand. */
class Store {
  constructor(model, failed) {
    this.model = model;
    this.failed = failed;
    this.small = new Map(); // digest -> {address, side}
    this.asked = new Map(); // digest -> longest side that was asked for
    this.queue = new Map(); // what is asked for with the next frame
    this.came = () => {}; // told of each small picture that comes
    this.answers = new Map(); // question -> {promise, resolve, value}
    this.hear = (message, buffers) => this.take(message, buffers);
    model.on("msg:custom", this.hear);
  }

  /** Address of the best small copy that is here; null if there is none. */
  smallAddress(key) {
    if (!this.small.has(key)) {
      const bytes = this.model.get("_small")[key];
      if (!bytes?.byteLength) return null;
      this.small.set(key, { address: addressOf(bytes, "image/webp"), side: SMALLEST });
    }
    return this.small.get(key).address;
  }

  /** Ask for a small copy of at least so many pixels, together with what else is asked now. */
  wantSmall(key, side) {
    if ((this.small.get(key)?.side ?? 0) >= side || (this.asked.get(key) ?? 0) >= side) return;
    this.asked.set(key, side);
    if (!this.queue.size) requestAnimationFrame(() => this.askSmall());
    this.queue.set(key, side);
  }

  askSmall() {
    const sides = new Set(this.queue.values());
    for (const side of sides) {
      const keys = [...this.queue.keys()].filter((key) => this.queue.get(key) === side);
      this.model.send({ ask: "small", keys, side });
    }
    this.queue.clear();
  }

  takeSmall({ key, side }, bytes) {
    const before = this.small.get(key);
    if (before?.side >= side) return;
    const address = addressOf(bytes, "image/webp");
    this.small.set(key, { address, side });
    this.came(key, address).then(() => { if (before) URL.revokeObjectURL(before.address); });
  }

  forgetOld(held) {
    for (const [key, { address }] of this.small) {
      if (held.has(key)) continue;
      URL.revokeObjectURL(address);
      this.small.delete(key);
      this.asked.delete(key);
    }
  }

  /** Promise of {address, ...} for a question such as {ask: "picture", key}. */
  ask(question) {
    const name = JSON.stringify(question);
    let answer = this.answers.get(name);
    if (answer) this.answers.delete(name); // and last again: the oldest are dropped first
    else {
      answer = {};
      answer.promise = new Promise((resolve) => { answer.resolve = resolve; });
      this.model.send(question);
    }
    this.answers.set(name, answer);
    this.dropOldest();
    return answer.promise;
  }

  /** Whether an answer is here already. */
  known(question) {
    return Boolean(this.answers.get(JSON.stringify(question))?.value);
  }

  take(message, buffers) {
    if (message.answer === "small") {
      this.takeSmall(message, buffers[0]);
      return;
    }
    const name = JSON.stringify(message.to ?? null);
    const answer = this.answers.get(name);
    if (message.answer === "error") {
      this.answers.delete(name); // the next look asks again
      this.failed(message.text);
    } else if (answer && !answer.value) {
      answer.value = { ...message, address: addressOf(buffers[0], "image/png") };
      answer.resolve(answer.value);
    }
  }

  dropOldest() {
    for (const [name, answer] of this.answers) {
      if (this.answers.size <= KEPT) return;
      if (answer.value) URL.revokeObjectURL(answer.value.address);
      this.answers.delete(name);
    }
  }

  close() {
    this.model.off("msg:custom", this.hear);
    for (const { address } of this.small.values()) URL.revokeObjectURL(address);
    for (const { value } of this.answers.values()) if (value) URL.revokeObjectURL(value.address);
  }
}

/** What the grid shows of a cell: the error map where there is one, else the picture. */
function shownOf(cell) {
  return cell.map ? { ...cell, key: cell.map, caption: cell.map_caption } : cell;
}

/** A colour scale with its ticks, and what it means. */
function scaleOf(model, ticks, map) {
  const colours = model.get("_colours").join(", ");
  return [
    make("div", { class: "ql-ramp", style: `background: linear-gradient(to right, ${colours})` }),
    make("div", { class: "ql-ticks" }, ...ticks.map((tick) => make("span", {}, tick))),
    make("div", { class: "ql-quiet" }, model.get("_what")[map]),
  ];
}

function placeName(row) {
  return `${row.prompt} · seed ${row.seed}`;
}

/** A name that breaks after its signs where it has to, before it breaks inside a word. */
function breakable(name) {
  return name.split(/(?<=[=._,/])/).flatMap((part) => [part, make("wbr")]);
}

/** Name, what else tells the recipe from others, and its figures: a line each. */
function headingLines(column) {
  return [
    make("div", { class: "ql-name" }, column.name),
    column.rest ? make("div", { class: "ql-rest" }, ...breakable(column.rest)) : null,
    ...column.facts.map((fact) => make("div", { class: "ql-fact" }, fact)),
  ];
}

// --- the grid ---------------------------------------------------------------------------------

class Grid {
  constructor(viewer) {
    this.viewer = viewer;
    this.images = new Map(); // by picture and place: kept from one drawing to the next
    this.focused = { row: 0, column: 0 };
    this.scroller = make("div", { class: "ql-scroller" });
    this.footer = make("p", { class: "ql-footer" });
    this.views = { pictures: "Pictures", errors: "Errors (FLIP)" };
    this.view = make("select", { class: "ql-view", "aria-label": "What the grid shows", onchange: () => this.choose() });
    fill(this.view, Object.values(this.views), null);
    this.sizes = { fit: "Fit the width", small: "Small", medium: "Medium", large: "Large" };
    this.size = make("select", { class: "ql-size", "aria-label": "Size of the pictures", onchange: () =>
      viewer.set({ thumbnails: Object.keys(this.sizes)[this.size.selectedIndex] }) });
    fill(this.size, Object.values(this.sizes), null);
    this.legend = make("div", { class: "ql-legend" });
    const reason = viewer.model.get("_no_flip");
    this.tools = make("div", { class: "ql-tools" }, reason ? make("span", { class: "ql-quiet" }, reason) : this.view, this.size, this.legend);
    this.element = make("div", { class: "ql-sheet" }, this.tools, this.scroller, this.footer);
    // Pictures are asked for when they come near what is in sight.
    this.watcher = new IntersectionObserver((seen) => this.look(seen), { root: this.scroller, rootMargin: "50% 20%" });
    this.near = new Set();
    viewer.store.came = (key, address) => this.show(key, address);
  }

  look(seen) {
    for (const { target, isIntersecting } of seen) {
      if (isIntersecting) this.near.add(target);
      else this.near.delete(target);
    }
    this.want();
  }

  /** Ask for what is near and not here, or not sharp enough for how large it is shown. */
  want() {
    if (!this.shown) return;
    const longest = Math.max(...this.sheet.size);
    const side = Math.min(longest, Math.ceil(Math.max(...this.shown) * (window.devicePixelRatio || 1)));
    for (const image of this.near) {
      if (image.isConnected) this.viewer.store.wantSmall(image.dataset.key, side);
    }
  }

  show(key, address) {
    const images = [...this.images.values()].filter((image) => image.dataset.key === key);
    return Promise.all(images.map((image) => swap(image, address)));
  }

  /** Give the pictures the width that there is, or the size that was chosen. */
  fit() {
    const across = this.scroller.clientWidth;
    if (!across || !this.sheet) return; // not on show
    const chosen = this.viewer.model.get("thumbnails");
    const [width, height] = this.sheet.size;
    const columns = Math.max(1, this.sheet.columns.length);
    let room = SIDES[chosen];
    let down = room;
    if (!room) {
      room = Math.max(LEAST, Math.floor((across - ROW_HEAD - 12) / columns) - CELL_PADDING);
      down = Math.max(SMALLEST, innerHeight * 0.5); // so that more than one row is in sight
    }
    const shown = fittedWidth(width, height, room, down);
    this.shown = [Math.max(1, Math.round(shown)), Math.max(1, Math.round(shown * height / width))];
    this.scroller.classList.toggle("ql-crisp", shown >= width); // pixels of their own, not blurred
    this.scroller.classList.toggle("ql-narrow", shown < NARROW);
    this.scroller.style.setProperty("--ql-across", `${this.shown[0]}px`);
    this.scroller.style.setProperty("--ql-down", `${this.shown[1]}px`);
    this.want();
  }

  resize() {
    this.size.value = this.sizes[this.viewer.model.get("thumbnails")];
    this.fit();
  }

  choose() {
    this.viewer.set({ view: Object.keys(this.views)[this.view.selectedIndex] });
  }

  drawLegend(sheet) {
    this.view.value = this.views[this.viewer.model.get("view")];
    this.view.hidden = !this.viewer.model.get("_has_views");
    this.size.value = this.sizes[this.viewer.model.get("thumbnails")];
    this.legend.hidden = !sheet.ticks.length;
    this.legend.replaceChildren(...scaleOf(this.viewer.model, sheet.ticks, "flip"));
  }

  draw(sheet) {
    this.drawLegend(sheet);
    const hadFocus = this.scroller.contains(document.activeElement);
    const kept = this.keptFocus(sheet);
    this.sheet = sheet;
    this.focused = kept;
    this.places = sheet.rows.map(() => []);
    this.before = this.images;
    this.images = new Map();
    this.fit();
    const heads = sheet.columns.map((column) =>
      make("th", { scope: "col", class: column.reason ? "ql-failed" : null }, ...headingLines(column)));
    const body = sheet.rows.map((row, r) => this.drawRow(row, r));
    const table = make("table", { role: "grid", "aria-label": "Pictures by prompt and recipe" },
      make("thead", {}, make("tr", {}, make("td", { class: "ql-corner" }), ...heads)),
      make("tbody", {}, ...body));
    table.addEventListener("keydown", (event) => this.move(event));
    table.addEventListener("focusin", (event) => this.follow(event.target));
    this.scroller.replaceChildren(table);
    for (const [name, image] of this.before) {
      if (this.images.get(name) === image) continue;
      this.watcher.unobserve(image);
      this.near.delete(image);
    }
    this.want();
    this.footer.textContent = sheet.footer;
    this.rove(kept.row, kept.column, hadFocus);
  }

  /** Where the focus goes in a new sheet: to the same recipe, prompt and seed. */
  keptFocus(sheet) {
    if (!this.sheet) return this.focused;
    const column = this.sheet.columns[this.focused.column];
    const row = this.sheet.rows[this.focused.row];
    const same = (a, b) => a && a.prompt === b.prompt && a.seed === b.seed;
    return {
      row: Math.max(0, sheet.rows.findIndex((other) => same(row, other))),
      column: Math.max(0, sheet.columns.findIndex((other) => column && column.label === other.label)),
    };
  }

  drawRow(row, r) {
    const cells = [];
    this.sheet.columns.forEach((column, c) => {
      if (column.reason && r > 0) {
        this.places[r][c] = this.places[0][c];
        return;
      }
      const cell = column.reason ? this.drawReason(column) : this.drawCell(column, row, r, c);
      this.places[r][c] = cell.querySelector("button") ?? cell;
      cells.push(cell);
    });
    const head = make("th", { scope: "row", "aria-label": placeName(row) },
      row.first ? make("div", { class: "ql-prompt", title: row.prompt }, row.prompt) : null,
      make("div", { class: "ql-seed" }, `seed ${row.seed}`));
    return make("tr", { class: row.first ? "ql-first" : null }, head, ...cells);
  }

  drawReason(column) {
    return make("td", { role: "gridcell", rowspan: this.sheet.rows.length, tabindex: -1, class: "ql-reason" },
      make("div", {}, column.reason));
  }

  drawCell(column, row, r, c) {
    const { key, caption, note } = shownOf(this.sheet.cells[r][c]);
    if (!key) {
      return make("td", { role: "gridcell", tabindex: -1, class: "ql-empty", "data-note": note },
        make("div", {}, note));
    }
    const open = () => { this.rove(r, c, false); this.viewer.full.open(r, c); };
    return make("td", { role: "gridcell" },
      make("button", {
        type: "button", class: "ql-cell", tabindex: -1, onclick: open,
        "aria-label": `${column.label}: ${placeName(row)}${caption ? `, ${caption}` : ""}`,
      }, this.image(key, r, c)),
      make("div", { class: "ql-caption" }, caption));
  }

  image(key, r, c) {
    const name = `${key} ${this.sheet.columns[c].label} ${r}`;
    let image = this.before.get(name);
    if (!image) {
      image = make("img", { alt: "", draggable: "false", decoding: "async", "data-key": key, src: this.viewer.store.smallAddress(key) });
      this.watcher.observe(image);
    }
    this.images.set(name, image);
    return image;
  }

  /** Make one cell the one that Tab reaches, and go there if asked. */
  rove(row, column, focus) {
    this.places[this.focused.row]?.[this.focused.column]?.setAttribute("tabindex", "-1");
    this.focused = { row, column };
    const place = this.places[row]?.[column];
    place?.setAttribute("tabindex", "0");
    if (focus) place?.focus();
  }

  /** Take note of a cell that got the focus in another way: by pointer, by a screen reader. */
  follow(element) {
    if (this.places[this.focused.row]?.[this.focused.column] === element) return;
    const row = this.places.findIndex((places) => places.includes(element));
    if (row >= 0) this.rove(row, this.places[row].indexOf(element), false);
  }

  move(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const last = { row: this.places.length - 1, column: this.sheet.columns.length - 1 };
    let { row, column } = this.focused;
    if (event.key in steps) {
      row += steps[event.key][0];
      column += steps[event.key][1];
    } else if (event.key === "Home") column = 0;
    else if (event.key === "End") column = last.column;
    else return;
    event.preventDefault();
    row = Math.min(Math.max(row, 0), last.row);
    column = Math.min(Math.max(column, 0), last.column);
    this.rove(row, column, true);
  }
}

// --- one picture, as large as it is or larger -------------------------------------------------

class Full {
  constructor(viewer) {
    this.viewer = viewer;
    this.image = make("img", { draggable: "false" });
    this.stage = make("div", { class: "ql-full-stage" }, this.image);
    this.heading = make("div", { class: "ql-heading" });
    this.place = make("div", { class: "ql-place-name" });
    this.state = make("span", { class: "ql-quiet", role: "status" });
    const close = make("button", { type: "button", class: "ql-close", "aria-label": "Close", onclick: () => this.close() }, "×");
    this.compare = make("button", { type: "button", onclick: () => this.toCompare() });
    const copy = copyButton("Copy picture", () => this.copy(), "The browser refuses; try the picture's own menu");
    this.element = make("dialog", { class: "ql-full", "aria-label": "Picture in full size" },
      make("div", { class: "ql-full-head" }, this.heading, close),
      this.stage,
      make("div", { class: "ql-full-foot" }, this.place, this.state, this.compare, ...copy,
        make("span", { class: "ql-quiet" }, "← → other recipes · ↑ ↓ other prompts and seeds · wheel or + − zoom · drag or Shift+arrows move · Esc closes")));
    this.zoom = new Zoom(this.element, [this.stage], { freeWheel: true, arrows: (event) => event.shiftKey });
    this.element.querySelector(".ql-full-foot").prepend(this.zoom.tools);
    this.element.addEventListener("keydown", (event) => this.move(event));
    this.element.addEventListener("click", (event) => { if (event.target === this.element) this.close(); });
    this.element.addEventListener("cancel", (event) => { event.preventDefault(); this.close(); });
    this.element.addEventListener("close", () => this.leave(true)); // a second Esc isn't asked first
    this.left = true;
  }

  open(row, column) {
    this.left = false;
    if (!this.element.open) this.element.showModal();
    this.show(row, column);
  }

  /** Close it, and go to the cell of what it showed, unless the focus goes elsewhere. */
  close(toGrid = true) {
    this.element.close();
    this.leave(toGrid);
  }

  /** Once, and at once: a page hears of the closing later, when keys may have gone on in the grid. */
  leave(toGrid) {
    if (toGrid && !this.left) this.viewer.grid.rove(this.row, this.column, true);
    this.left = true;
  }

  /** Stay with the same recipe, prompt and seed in a new sheet: its picture may be another one. */
  follow(sheet) {
    if (!this.element.open) return;
    const row = sheet.rows.findIndex((other) => placeName(other) === this.rowName);
    const column = sheet.columns.findIndex((other) => other.label === this.label);
    const key = sheet.cells[row]?.[column] && shownOf(sheet.cells[row][column]).key;
    if (key) this.show(row, column);
    else this.close();
  }

  async show(row, column) {
    const { sheet, store } = this.viewer;
    this.rowName = placeName(sheet.rows[row]);
    this.label = sheet.columns[column].label;
    this.row = row;
    this.column = column;
    const shown = sheet.columns[column];
    const cell = shownOf(sheet.cells[row][column]);
    const [name, ...facts] = headingLines(shown);
    this.heading.replaceChildren(name, ...facts.filter(Boolean));
    this.place.textContent = placeName(sheet.rows[row]) + (cell.caption ? ` · ${cell.caption}` : "");
    this.image.alt = `${shown.label}: ${placeName(sheet.rows[row])}`;
    const other = this.otherRecipe();
    this.compare.hidden = other === null;
    this.compare.textContent = `Compare with ${other}`;
    this.element.dataset.key = cell.key;
    this.fit();
    const question = { ask: "picture", key: cell.key };
    if (!store.known(question)) {
      this.state.textContent = "loading …";
      const small = store.smallAddress(cell.key);
      if (small) swap(this.image, small);
    }
    const whole = await store.ask(question);
    if (this.element.dataset.key !== cell.key) return;
    await swap(this.image, whole.address);
    this.state.textContent = "";
    for (const next of [this.next(0, -1), this.next(0, 1)]) {
      if (next) store.ask({ ask: "picture", key: shownOf(sheet.cells[next.row][next.column]).key });
    }
  }

  /** Copy the whole picture, whatever of it is in sight. */
  async copy() {
    const { key } = this.element.dataset;
    const whole = await this.viewer.store.ask({ ask: "picture", key });
    return copiedPicture(whole.address);
  }

  fit() {
    // Of the whole picture, so that a small copy standing in for it has its room at once.
    const [width, height] = this.viewer.sheet.size;
    const around = [...this.element.children].filter((part) => part !== this.stage);
    const taken = around.reduce((sum, part) => sum + part.offsetHeight + 10, 0);
    const shown = fittedWidth(width, height, innerWidth * 0.92, innerHeight * 0.96 - taken - 40);
    this.stage.style.width = `${shown}px`;
    this.stage.style.aspectRatio = `${width} / ${height}`;
    this.zoom.fit([width, height], shown);
  }

  /** The nearest cell with a picture in a direction; null at the edge. */
  next(down, across) {
    const { sheet } = this.viewer;
    let row = this.row + down;
    let column = this.column + across;
    while (sheet.cells[row]?.[column]) {
      if (sheet.cells[row][column].key) return { row, column };
      row += down;
      column += across;
    }
    return null;
  }

  move(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!(event.key in steps) || event.shiftKey) return;
    event.preventDefault();
    const next = this.next(...steps[event.key]);
    if (next) this.show(next.row, next.column);
  }

  /** The recipe to compare with: the first of the row, or the second for the first. */
  otherRecipe() {
    const { sheet } = this.viewer;
    const labels = sheet.columns.filter((_, c) => sheet.cells[this.row][c].key).map((c) => c.label);
    return labels.find((label) => label !== sheet.columns[this.column].label) ?? null;
  }

  toCompare() {
    const { model, sheet } = this.viewer;
    const label = sheet.columns[this.column].label;
    const pair = [this.otherRecipe(), label];
    if (sheet.columns[0].label === label) pair.reverse();
    this.close(false);
    this.viewer.set({ mode: "compare", pair, _row: this.row });
    this.viewer.tabs.compare.focus();
  }
}

// --- two pictures -----------------------------------------------------------------------------

class Compare {
  constructor(viewer) {
    this.viewer = viewer;
    const { model } = viewer;
    const chosen = (side) => make("select", { class: `ql-${side.toLowerCase()}`, "aria-label": `${side} recipe`, onchange: () => this.choose() });
    this.left = chosen("Left");
    this.right = chosen("Right");
    this.place = make("select", { class: "ql-place", "aria-label": "Prompt and seed", onchange: () => viewer.set({ _row: this.place.selectedIndex }) });
    const step = (by) => () => {
      const count = viewer.sheet.rows.length;
      viewer.set({ _row: (model.get("_row") + by + count) % count });
    };
    const button = (name, label, onclick, text) => make("button", { type: "button", class: name, title: label, "aria-label": label, onclick }, text);
    this.worst = make("button", { type: "button", class: "ql-worst", title: "The prompt and seed at which these two recipes differ most (lowest PSNR)", onclick: () => model.send({ ask: "worst" }) }, "Worst pair");
    this.toggle = make("input", { type: "checkbox", class: "ql-toggle", onchange: () => viewer.set({ difference: this.toggle.checked }) });
    const tools = make("div", { class: "ql-tools" },
      make("span", { class: "ql-group" }, this.left,
        button("ql-swap", "Swap left and right", () => this.swapSides(), "⇄"), this.right),
      make("span", { class: "ql-group" }, button("ql-before", "Previous prompt or seed", step(-1), "‹"), this.place,
        button("ql-after", "Next prompt or seed", step(1), "›")),
      this.worst,
      make("label", {}, this.toggle, "Difference"), this.chosenMap());
    this.buildStage();
    this.buildHeat();
    this.said = make("p", { class: "ql-said", role: "status" });
    this.stages = make("div", { class: "ql-stages", tabindex: 0, role: "group", "aria-label": "The two pictures: + and − zoom, arrows move" },
      this.slider, this.heat);
    // Both sides and the difference move together.
    this.zoom = new Zoom(this.stages, [this.stage, this.heat.querySelector(".ql-stage")], {
      dragFrom: (event) => !event.target.closest(".ql-handle"),
    });
    tools.append(this.zoom.tools);
    this.element = make("div", { class: "ql-compare" }, tools, this.said, this.stages);
  }

  /** Which map the difference is; nothing to choose where FLIP isn't there, which is said. */
  chosenMap() {
    const { viewer } = this;
    const reason = viewer.model.get("_no_flip");
    this.maps = { levels: "8-bit levels", flip: "FLIP" };
    this.map = make("select", { class: "ql-map", "aria-label": "What the difference shows",
      onchange: () => viewer.set({ map: Object.keys(this.maps)[this.map.selectedIndex] }) });
    fill(this.map, Object.values(this.maps), null);
    return reason ? make("span", { class: "ql-quiet" }, reason) : this.map;
  }

  buildStage() {
    this.under = make("img", { draggable: "false" });
    this.over = make("img", { draggable: "false" });
    this.clip = make("div", { class: "ql-over" }, this.over);
    this.handle = make("div", { role: "slider", tabindex: 0, class: "ql-handle", "aria-valuemin": 0, "aria-valuemax": 100, "aria-orientation": "horizontal" },
      make("span", { class: "ql-knob", "aria-hidden": "true" }));
    this.stage = make("div", { class: "ql-stage" }, this.under, this.clip, this.handle);
    this.leftHead = make("div", { class: "ql-heading" });
    this.rightHead = make("div", { class: "ql-heading ql-end" });
    this.slider = make("figure", { class: "ql-slider" },
      make("div", { class: "ql-heads" }, this.leftHead, this.rightHead), this.stage,
      make("figcaption", { class: "ql-quiet" }, "Drag the line, or focus it and press ← → · Ctrl+wheel, + − or two fingers zoom; then drag the picture"));
    const drag = (event) => {
      const box = this.stage.getBoundingClientRect();
      this.moveTo((event.clientX - box.left) / box.width);
    };
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.stage.setPointerCapture(event.pointerId);
      this.handle.focus({ preventScroll: true });
      drag(event);
    });
    // Else the notebook's cell would take the focus from the handle.
    this.stage.addEventListener("mousedown", (event) => event.preventDefault());
    this.stage.addEventListener("pointermove", (event) => {
      if (this.stage.hasPointerCapture(event.pointerId)) drag(event);
    });
    this.handle.addEventListener("keydown", (event) => this.key(event));
  }

  buildHeat() {
    this.heatImage = make("img", { draggable: "false", class: "ql-heat-image" });
    this.heatHead = make("div", { class: "ql-heading" });
    this.scale = make("figcaption", {});
    this.heat = make("figure", { class: "ql-heat" },
      make("div", { class: "ql-heads" }, this.heatHead),
      make("div", { class: "ql-stage" }, this.heatImage),
      this.scale);
  }

  choose() {
    this.viewer.set({ pair: [this.left.value, this.right.value] });
  }

  swapSides() {
    const [left, right] = this.viewer.model.get("pair");
    this.viewer.set({ pair: [right, left], position: 1 - this.viewer.model.get("position") });
  }

  key(event) {
    const now = this.viewer.model.get("position");
    const step = event.shiftKey ? 0.1 : 0.01;
    const to = {
      ArrowLeft: now - step, ArrowDown: now - step, ArrowRight: now + step, ArrowUp: now + step,
      PageDown: now - 0.1, PageUp: now + 0.1, Home: 0, End: 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.moveTo(to);
  }

  moveTo(position) {
    this.viewer.set({ position: Math.round(Math.min(Math.max(position, 0), 1) * 1000) / 1000 });
  }

  drawPosition() {
    const position = this.viewer.model.get("position");
    const per = `${position * 100}%`;
    this.clip.style.clipPath = `inset(0 0 0 ${per})`;
    this.handle.style.left = per;
    const [left, right] = this.viewer.model.get("pair");
    const whole = Math.round(position * 100);
    this.handle.setAttribute("aria-label", `Boundary between ${left} and ${right}`);
    this.handle.setAttribute("aria-valuenow", whole);
    this.handle.setAttribute("aria-valuetext", `${whole} % ${left}, ${100 - whole} % ${right}`);
  }

  drawChoices(sheet) {
    const [left, right] = this.viewer.model.get("pair");
    const labels = sheet.columns.map((column) => column.label);
    fill(this.left, labels, left);
    fill(this.right, labels, right);
    const row = this.viewer.model.get("_row");
    fill(this.place, sheet.rows.map(placeName), null);
    this.place.selectedIndex = row;
    this.toggle.checked = this.viewer.model.get("difference");
    this.heat.hidden = !this.toggle.checked;
    this.map.disabled = !this.toggle.checked;
    this.map.value = this.maps[this.viewer.model.get("map")];
  }

  async draw(sheet) {
    this.drawChoices(sheet);
    this.drawPosition();
    const pair = this.viewer.model.get("pair");
    const columns = pair.map((label) => sheet.columns.find((column) => column.label === label));
    const row = sheet.rows[this.viewer.model.get("_row")];
    if (columns.includes(undefined) || !row) return this.say("There are no pictures to compare yet.");
    const cells = columns.map((column) => sheet.cells[sheet.rows.indexOf(row)][sheet.columns.indexOf(column)]);
    this.leftHead.replaceChildren(...headingLines(columns[0]).filter(Boolean));
    this.rightHead.replaceChildren(...headingLines(columns[1]).filter(Boolean));
    const missing = cells.findIndex((cell) => !cell.key);
    if (missing >= 0) return this.say(`${columns[missing].label}: ${columns[missing].reason ?? cells[missing].note}`);
    this.under.alt = `${pair[0]}: ${placeName(row)}`;
    this.over.alt = `${pair[1]}: ${placeName(row)}`;
    const [left, right] = cells.map((cell) => cell.key);
    const map = this.viewer.model.get("map");
    this.wanted = `${left} ${right} ${map}`;
    this.say("");
    await this.drawPictures(left, right, this.wanted);
    if (this.viewer.model.get("difference")) await this.drawHeat(left, right, map, this.wanted);
  }

  say(text) {
    this.said.textContent = text;
    this.stages.hidden = text !== "";
  }

  async drawPictures(left, right, wanted) {
    const { store } = this.viewer;
    const whole = (key) => store.ask({ ask: "picture", key });
    this.stage.classList.add("ql-loading");
    const found = await Promise.all([whole(left), whole(right)]);
    if (this.wanted !== wanted) return;
    await Promise.all([swap(this.under, found[0].address), swap(this.over, found[1].address)]);
    this.stage.classList.remove("ql-loading");
    this.fit();
  }

  async drawHeat(left, right, map, wanted) {
    this.heat.classList.add("ql-loading");
    const found = await this.viewer.store.ask({ ask: "pair", left, right, map });
    if (this.wanted !== wanted) return;
    await swap(this.heatImage, found.address);
    this.heat.classList.remove("ql-loading");
    this.heatImage.alt = `Difference between ${this.under.alt} and ${this.over.alt}`;
    this.heatHead.replaceChildren(make("div", { class: "ql-name" }, "Difference of these two pictures"),
      ...found.lines.map((line) => make("div", { class: "ql-fact" }, line)));
    this.scale.replaceChildren(...scaleOf(this.viewer.model, found.ticks, map));
    this.fit();
  }

  /** Give both stages the same whole enlargement, side by side where there is room. */
  fit() {
    const across = this.stages.clientWidth;
    if (!across) return; // not on show
    const [width, height] = this.viewer.sheet.size;
    const beside = this.viewer.model.get("difference") && across >= 640;
    const room = beside ? (across - 24) / 2 : across;
    const shown = fittedWidth(width, height, Math.min(room, Math.max(width, 560)), Math.max(320, innerHeight * 0.8));
    this.stages.style.setProperty("--ql-shown", `${shown}px`);
    this.stages.style.setProperty("--ql-ratio", `${width} / ${height}`);
    this.zoom.fit([width, height], shown);
  }
}

/** Put options into a select, leaving it alone (open or focused) where nothing changed. */
function fill(select, names, value) {
  const now = [...select.options].map((option) => option.text);
  if (now.length !== names.length || now.some((name, i) => name !== names[i])) {
    select.replaceChildren(...names.map((name) => make("option", {}, name)));
  }
  if (value !== null) select.value = value;
}

// --- the viewer -------------------------------------------------------------------------------

class Viewer {
  constructor(model, element) {
    this.model = model;
    this.error = make("div", { class: "ql-trouble" });
    this.store = new Store(model, (text) => this.fail(text));
    this.full = new Full(this);
    this.grid = new Grid(this);
    this.compare = new Compare(this);
    this.nothing = make("p", { class: "ql-quiet" }, "No pictures yet.");
    this.tabs = { grid: this.tab("grid", "Grid"), compare: this.tab("compare", "Compare") };
    this.panels = { grid: this.grid.element, compare: this.compare.element };
    for (const [mode, panel] of Object.entries(this.panels)) {
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-label", this.tabs[mode].textContent);
    }
    const tablist = make("div", { role: "tablist", class: "ql-tabs", "aria-label": "View" }, this.tabs.grid, this.tabs.compare);
    tablist.addEventListener("keydown", (event) => this.changeTab(event));
    const root = make("div", { class: "ql-viewer" }, tablist, this.error, this.nothing,
      this.grid.element, this.compare.element, this.full.element);
    keepKeys(root);
    element.append(root);
    this.listen(root);
    this.draw();
  }

  tab(mode, name) {
    return make("button", { type: "button", role: "tab", class: `ql-tab-${mode}`, onclick: () => this.set({ mode }) }, name);
  }

  changeTab(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    this.set({ mode: this.model.get("mode") === "grid" ? "compare" : "grid" });
    this.tabs[this.model.get("mode")].focus();
  }

  listen(root) {
    const { model } = this;
    const handlers = {
      "change:thumbnails": () => this.grid.resize(),
      "change:_sheet": () => this.later(), "change:_small": () => this.later(),
      "change:mode": () => this.later(), "change:pair": () => this.later(),
      "change:_row": () => this.later(), "change:difference": () => this.later(),
      "change:map": () => this.later(),
      "change:position": () => this.compare.drawPosition(),
    };
    for (const [name, handler] of Object.entries(handlers)) model.on(name, handler);
    const watcher = new ResizeObserver(() => { this.compare.fit(); this.grid.fit(); });
    watcher.observe(root);
    this.stop = () => {
      for (const [name, handler] of Object.entries(handlers)) model.off(name, handler);
      watcher.disconnect();
      this.grid.watcher.disconnect();
      this.store.close();
    };
  }

  /** Draw once for changes that come together. */
  later() {
    if (this.pending) return;
    this.pending = true;
    queueMicrotask(() => { this.pending = false; this.draw(); });
  }

  set(values) {
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.model.save_changes();
  }

  fail(text) {
    this.error.replaceChildren(make("div", { role: "alert" }, text));
  }

  draw() {
    const sheet = this.model.get("_sheet");
    const mode = this.model.get("mode");
    const empty = !sheet.rows?.length;
    this.nothing.hidden = !empty;
    for (const [name, tab] of Object.entries(this.tabs)) {
      tab.setAttribute("aria-selected", String(name === mode));
      tab.tabIndex = name === mode ? 0 : -1;
      this.panels[name].hidden = empty || name !== mode;
    }
    if (empty) return;
    if (this.sheet !== sheet) {
      this.sheet = sheet;
      this.error.replaceChildren();
      this.grid.draw(sheet);
      this.full.follow(sheet);
      const shown = (cell) => (cell.key ? [cell.key, shownOf(cell).key] : []);
      this.store.forgetOld(new Set(sheet.cells.flat().flatMap(shown)));
    }
    if (mode === "grid") this.grid.fit();
    if (mode === "compare") this.compare.draw(sheet).catch((error) => this.fail(String(error)));
  }
}

export default {
  render({ model, el }) {
    const viewer = new Viewer(model, el);
    return () => viewer.stop();
  },
};
