// Zoom and pan of one or several frames together: wheel, drag, keys, pinch.
// What is shown is one piece of the picture; each frame's images follow by a CSS transform alone.

const MOST_SCREEN = 16; // screen pixels that a picture's pixel becomes at most

class Zoom {
  /**
   * element: holds the frames and gets the keys; frames: each shows a whole picture at times 1;
   * freeWheel: whether the plain wheel zooms, which else scrolls the page until Ctrl is held;
   * dragFrom: whether a drag that begins with an event may move the picture.
   */
  constructor(element, frames, { freeWheel = false, dragFrom = () => true, arrows = () => true } = {}) {
    this.element = element;
    this.frames = frames;
    this.freeWheel = freeWheel;
    this.dragFrom = dragFrom;
    this.arrows = arrows;
    this.pointers = new Map();
    this.picture = [1, 1];
    this.shown = 1;
    this.reset();
    for (const frame of frames) {
      frame.addEventListener("wheel", (event) => this.wheel(event, frame), { passive: false });
      frame.addEventListener("pointerdown", (event) => this.press(event, frame), true);
      frame.addEventListener("pointermove", (event) => this.drag(event, frame), true);
      for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
        frame.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
      }
      frame.addEventListener("dblclick", (event) => {
        event.preventDefault();
        this.to(this.times > 1.001 ? 1 : this.whole() * 2, this.placeOf(event, frame));
      });
    }
    element.addEventListener("keydown", (event) => this.key(event));
    this.tools = this.buildTools();
  }

  buildTools() {
    const button = (text, label, onclick) => make("button", { type: "button", title: label, "aria-label": label, onclick }, text);
    this.said = make("span", { class: "ql-zoom-said" });
    return make("span", { class: "ql-group ql-zoom" },
      button("−", "Smaller (key −)", () => this.to(this.times / 1.5)),
      this.said,
      button("+", "Larger (key +)", () => this.to(this.times * 1.5)),
      button("1:1", "A pixel of the picture on a pixel of the screen (key 1)", () => this.to(this.whole())),
      button("Fit", "The whole picture (key 0)", () => this.to(1)));
  }

  /** Take note of a picture's size and the width in CSS pixels at which all of it is shown. */
  fit(picture, shown) {
    const same = this.picture[0] === picture[0] && this.picture[1] === picture[1];
    this.picture = picture;
    this.shown = shown;
    if (!same) this.reset();
    this.later();
  }

  reset() {
    this.times = 1;
    this.x = 0; // left upper corner of what is shown, as a share of the picture
    this.y = 0;
    this.later();
  }

  /** The times at which a picture's pixel is one of the screen's. */
  whole() {
    return this.picture[0] / (window.devicePixelRatio || 1) / this.shown;
  }

  /** Show so many times the fitted size; the place (shares of a frame) stays where it is. */
  to(times, [px, py] = [0.5, 0.5]) {
    const most = Math.max(4, this.whole() * MOST_SCREEN);
    const next = Math.min(Math.max(times, Math.min(1, this.whole())), most);
    this.x += px / this.times - px / next;
    this.y += py / this.times - py / next;
    this.times = next;
    this.later();
  }

  /** Move what is shown by shares of a frame. */
  by(across, down) {
    this.x += across / this.times;
    this.y += down / this.times;
    this.later();
  }

  keepInside() {
    const room = 1 - 1 / this.times; // below 0 where the picture is smaller than its frame
    const inside = (at) => (room > 0 ? Math.min(Math.max(at, 0), room) : room / 2);
    this.x = inside(this.x);
    this.y = inside(this.y);
  }

  placeOf(event, frame) {
    const box = frame.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  wheel(event, frame) {
    if (!this.freeWheel && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    const delta = Math.min(Math.max(event.deltaY * lines, -120), 120); // a wheel's notch is 100 or 120
    this.to(this.times * Math.exp(-delta / (event.ctrlKey && !event.deltaMode && Math.abs(event.deltaY) < 40 ? 100 : 400)), this.placeOf(event, frame));
  }

  press(event, frame) {
    const mouse = event.pointerType === "mouse";
    if (event.button !== 0 || (mouse && !(this.times > 1 && this.dragFrom(event)))) return;
    if (!mouse && this.pointers.size === 0 && !(this.times > 1 && this.dragFrom(event))) {
      this.pointers.set(event.pointerId, { at: [event.clientX, event.clientY], waits: true });
      return; // one finger: what it does elsewhere, until a second comes
    }
    event.preventDefault();
    event.stopPropagation();
    for (const pointer of this.pointers.values()) pointer.waits = false;
    frame.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { at: [event.clientX, event.clientY], waits: false });
    this.element.focus?.({ preventScroll: true });
  }

  drag(event, frame) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const before = this.spread();
    const [x, y] = pointer.at;
    pointer.at = [event.clientX, event.clientY];
    if (pointer.waits) return;
    event.stopPropagation();
    const box = frame.getBoundingClientRect();
    const share = 1 / this.pointers.size; // of two fingers each moves half
    this.by(-(event.clientX - x) * share / box.width, -(event.clientY - y) * share / box.height);
    const after = this.spread();
    if (before && after) this.to(this.times * after.distance / before.distance, this.placeOf(after, frame));
  }

  /** Distance and middle of two fingers. */
  spread() {
    if (this.pointers.size !== 2) return null;
    const [one, other] = [...this.pointers.values()].map((pointer) => pointer.at);
    const distance = Math.max(1, Math.hypot(one[0] - other[0], one[1] - other[1]));
    return { distance, clientX: (one[0] + other[0]) / 2, clientY: (one[1] + other[1]) / 2 };
  }

  key(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select")) return;
    const step = 0.1;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key === "+" || event.key === "=") this.to(this.times * 1.25);
    else if (event.key === "-") this.to(this.times / 1.25);
    else if (event.key === "0") this.to(1);
    else if (event.key === "1") this.to(this.whole());
    else if (event.key in moves && this.arrows(event)) this.by(...moves[event.key]);
    else return;
    event.preventDefault();
  }

  /** Draw once a frame, whatever came meanwhile. */
  later() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.draw();
    });
  }

  draw() {
    this.keepInside();
    const { style, classList } = this.element;
    style.setProperty("--ql-times", this.times);
    style.setProperty("--ql-x", `${-100 * this.x * this.times}%`);
    style.setProperty("--ql-y", `${-100 * this.y * this.times}%`);
    classList.toggle("ql-zoomed", this.times > 1.001);
    classList.toggle("ql-enlarged", this.times >= this.whole() * 0.999);
    const percent = Math.round(100 * this.times / this.whole());
    this.said.textContent = `${percent} %`;
  }
}
