// Two pictures, one question. Nothing here knows which of them is which.

class Question {
  constructor(model, element) {
    this.model = model;
    this.images = [1, 2].map(() => make("img", { draggable: "false" }));
    this.buttons = this.images.map((image, i) =>
      make("button", { type: "button", class: `ql-answer ql-answer-${i + 1}`, onclick: () => this.answer(i + 1) },
        image, make("span", {}, `Picture ${i + 1} `, make("kbd", {}, String(i + 1)))));
    this.note = make("p", { class: "ql-quiet" });
    this.pair = make("div", { class: "ql-two" }, ...this.buttons);
    this.root = make("div", {
      class: "ql-question", tabindex: 0, role: "group",
      "aria-label": "Which of these two is quantized? Answer with the keys 1 and 2, or left and right",
    }, make("div", { class: "ql-ask" }, "Which of these two is quantized?"), this.pair, this.note);
    this.root.addEventListener("keydown", (event) => this.key(event));
    keepKeys(this.root);
    element.append(this.root);
    this.redraw = () => this.draw();
    model.on("change:_shown", this.redraw);
    this.watcher = new ResizeObserver(() => this.fit());
    this.watcher.observe(this.root);
    this.draw();
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.repeat) return;
    const which = { 1: 1, 2: 2, ArrowLeft: 1, ArrowRight: 2 }[event.key];
    if (!which) return;
    event.preventDefault();
    this.answer(which);
  }

  answer(which) {
    if (this.busy) return;
    this.setBusy(true); // until the next two pictures are there
    this.model.send({ answer: which, turn: this.model.get("_shown").turn });
  }

  async draw() {
    const shown = this.model.get("_shown");
    this.note.textContent = shown.note;
    this.pair.hidden = shown.pictures.length < 2;
    this.root.firstChild.hidden = this.pair.hidden;
    if (this.pair.hidden) {
      this.setBusy(false);
      return;
    }
    const addresses = shown.pictures.map((bytes) => addressOf(bytes, "image/png"));
    this.size = shown.size;
    this.fit();
    // Both at once: the one that comes first would be a hint.
    const ready = await Promise.all(addresses.map(async (address) => {
      const image = new Image();
      image.src = address;
      await image.decode();
      return image;
    }));
    if (shown.turn !== this.model.get("_shown").turn) return;
    this.buttons.forEach((button, i) => {
      ready[i].alt = `Picture ${i + 1}`;
      ready[i].draggable = false;
      ready[i].style.width = this.images[i].style.width;
      this.images[i].replaceWith(ready[i]);
      this.images[i] = ready[i];
    });
    addresses.forEach((address) => URL.revokeObjectURL(address));
    this.fit();
    this.setBusy(false);
  }

  setBusy(busy) {
    this.busy = busy;
    this.pair.classList.toggle("ql-busy", busy);
  }

  fit() {
    if (!this.size || !this.root.clientWidth) return;
    const [width, height] = this.size;
    const room = (this.root.clientWidth - 40) / 2;
    const shown = fittedWidth(width, height, Math.min(room, Math.max(width, 420)), Math.max(240, innerHeight * 0.7));
    for (const image of this.images) image.style.width = `${shown}px`;
    this.pair.classList.toggle("ql-enlarged", shown >= width);
  }

  stop() {
    this.model.off("change:_shown", this.redraw);
    this.watcher.disconnect();
  }
}

export default {
  render({ model, el }) {
    const question = new Question(model, el);
    return () => question.stop();
  },
};
