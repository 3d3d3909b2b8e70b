// Paints a mask over a picture: with a pen, a finger, a mouse, or the arrow keys.

import { announce, button, el, pngOf } from "./dom.js";

const UNDOS = 30;
const KEYS = "With the keyboard: arrows move the brush (with Shift: far), Space paints, + and − change its size, E erases, Ctrl+Z undoes.";

/** A mask as the server reads it: white where it is drawn anew, black where it is kept. */
export function maskFile(mask) {
  const canvas = el("canvas", { width: mask.width, height: mask.height });
  const context = canvas.getContext("2d");
  const pixels = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const light = pixels.data[at + 3];
    pixels.data.set([light, light, light, 255], at);
  }
  context.putImageData(pixels, 0, 0);
  return pngOf(canvas);
}

export class MaskPainter {
  static COLOUR = [233, 30, 120];

  #dialog;
  #board;
  #mask;
  #context;
  #ring = el("div", { className: "brush", ariaHidden: "true" });
  #size = el("input", { type: "range", id: "brush-size", min: 1, max: 60, value: 15 });
  #erase = button("Erase", () => this.#setErase(!this.#erasing), { ariaPressed: "false" });
  #undo = button("Undo", () => this.#undone());
  #erasing = false;
  #before = [];
  #last = null; // where the stroke is
  #at; // of the brush, in pixels of the mask

  /** `picture`: a canvas of the size that is drawn; `mask`: as `open` gave it before. */
  constructor(picture, mask) {
    const { width, height } = picture;
    this.#mask = el("canvas", { width, height, className: "paint" });
    this.#context = this.#mask.getContext("2d", { willReadFrequently: true });
    if (mask) this.#context.drawImage(mask, 0, 0, width, height);
    this.#at = [width / 2, height / 2];
    picture.className = "under";
    this.#board = el("div", { className: "board", tabIndex: 0, role: "application", ariaLabel: "Mask", "aria-describedby": "mask-keys" },
      picture, this.#mask, this.#ring);
    const tools = el("div", { className: "tools" },
      el("label", { htmlFor: "brush-size", textContent: "Brush" }), this.#size, this.#erase, this.#undo,
      button("Paint all", () => this.#change(() => this.#fill())),
      button("Clear", () => this.#change(() => this.#context.clearRect(0, 0, width, height))),
      button("Invert", () => this.#change(() => this.#invert())));
    this.#dialog = el("dialog", { className: "painter", "aria-labelledby": "mask-title" },
      el("h2", { id: "mask-title", textContent: "Paint over what is drawn anew" }), tools,
      el("div", { className: "easel" }, this.#board),
      el("p", { className: "hint", id: "mask-keys", textContent: KEYS }),
      el("div", { className: "buttons" }, button("Use this mask", () => this.#dialog.close("use"), { className: "primary" }),
        button("Cancel", () => this.#dialog.close())));
    this.#listen();
  }

  /** Resolves with a canvas that is painted where the picture is drawn anew; null: nothing is; undefined: cancelled. */
  open() {
    document.body.append(this.#dialog);
    this.#dialog.showModal();
    this.#fit();
    const observer = new ResizeObserver(() => this.#fit());
    observer.observe(this.#dialog);
    this.#show();
    this.#board.focus();
    return new Promise((resolve) => {
      this.#dialog.addEventListener("close", () => {
        observer.disconnect();
        this.#dialog.remove();
        const used = this.#dialog.returnValue === "use";
        resolve(used ? (this.#share() > 0 ? this.#mask : null) : undefined);
      });
    });
  }

  get #radius() {
    return (this.#size.value / 200) * Math.min(this.#mask.width, this.#mask.height);
  }

  #listen() {
    const board = this.#board;
    const place = (event) => {
      const box = board.getBoundingClientRect();
      return [((event.clientX - box.left) * this.#mask.width) / box.width, ((event.clientY - box.top) * this.#mask.height) / box.height];
    };
    board.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      board.setPointerCapture(event.pointerId);
      this.#keep();
      this.#last = this.#at = place(event);
      this.#stroke(this.#at, event);
    });
    board.addEventListener("pointermove", (event) => {
      this.#at = place(event);
      if (this.#last) for (const one of event.getCoalescedEvents?.() ?? [event]) this.#stroke(place(one), event);
      this.#show();
    });
    for (const end of ["pointerup", "pointercancel"]) board.addEventListener(end, () => (this.#last = null));
    this.#size.addEventListener("input", () => this.#show());
    this.#dialog.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.#undone();
      return;
    }
    if (document.activeElement !== this.#board || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = Math.max(1, this.#radius * (event.shiftKey ? 4 : 0.5));
    const ways = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (ways[event.key]) {
      const clamp = (value, most) => Math.min(Math.max(value, 0), most);
      this.#at = [clamp(this.#at[0] + ways[event.key][0], this.#mask.width), clamp(this.#at[1] + ways[event.key][1], this.#mask.height)];
    } else if (event.key === " ") {
      if (!event.repeat) this.#keep();
      this.#stroke(this.#at);
      announce(`${Math.round(this.#share() * 100)} % painted`);
    } else if (event.key === "+" || event.key === "-") {
      this.#size.value = Number(this.#size.value) + (event.key === "+" ? 3 : -3);
    } else if (event.key.toLowerCase() === "e") {
      this.#setErase(!this.#erasing);
    } else return;
    event.preventDefault();
    this.#show();
  }

  /** Paint to a place, from where the stroke was; a pen's pressure makes it thinner. */
  #stroke(to, event) {
    const context = this.#context;
    const from = event && this.#last ? this.#last : to;
    const pressure = event?.pointerType === "pen" && event.pressure ? 0.3 + 0.7 * event.pressure : 1;
    context.globalCompositeOperation = this.#erasing ? "destination-out" : "source-over";
    context.strokeStyle = `rgb(${MaskPainter.COLOUR})`;
    context.lineWidth = Math.max(1, 2 * this.#radius * pressure);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(to[0] + 0.01, to[1]);
    context.stroke();
    context.globalCompositeOperation = "source-over";
    if (event) this.#last = to;
  }

  #fill() {
    this.#context.fillStyle = `rgb(${MaskPainter.COLOUR})`;
    this.#context.fillRect(0, 0, this.#mask.width, this.#mask.height);
  }

  #invert() {
    this.#context.globalCompositeOperation = "source-out";
    this.#fill();
    this.#context.globalCompositeOperation = "source-over";
  }

  #change(work) {
    this.#keep();
    work();
    announce(`${Math.round(this.#share() * 100)} % painted`);
  }

  #keep() {
    this.#before.push(this.#context.getImageData(0, 0, this.#mask.width, this.#mask.height));
    if (this.#before.length > UNDOS) this.#before.shift();
    this.#undo.removeAttribute("aria-disabled");
  }

  #undone() {
    const before = this.#before.pop();
    if (before) this.#context.putImageData(before, 0, 0);
    this.#show();
  }

  #setErase(erasing) {
    this.#erasing = erasing;
    this.#erase.ariaPressed = String(erasing);
  }

  /** The painted part, 0 to 1. */
  #share() {
    const { data } = this.#context.getImageData(0, 0, this.#mask.width, this.#mask.height);
    let sum = 0;
    for (let at = 3; at < data.length; at += 4) sum += data[at];
    return sum / (255 * (data.length / 4));
  }

  /** As large as the dialog has room for. */
  #fit() {
    const easel = this.#board.parentElement;
    const { width, height } = this.#mask;
    const scale = Math.min(easel.clientWidth / width, easel.clientHeight / height);
    this.#board.style.width = `${Math.floor(width * scale)}px`;
    this.#board.style.height = `${Math.floor(height * scale)}px`;
    this.#show();
  }

  #show() {
    const scale = this.#board.clientWidth / this.#mask.width;
    const side = Math.max(4, 2 * this.#radius * scale);
    Object.assign(this.#ring.style, { width: `${side}px`, height: `${side}px`,
      transform: `translate(${this.#at[0] * scale - side / 2}px, ${this.#at[1] * scale - side / 2}px)` });
    if (this.#before.length) this.#undo.removeAttribute("aria-disabled");
    else this.#undo.setAttribute("aria-disabled", "true");
  }
}
