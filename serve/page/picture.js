// The picture that drawing begins from, and its mask. Pictures are cut to the form that is drawn, and never stretched.

import { button, byId, dataUrl, el, pngOf } from "./dom.js";
import { MaskPainter, maskFile } from "./mask.js";

const SAME_FORM = 0.01; // ratios of sides that differ less count as the same

export class StartPicture {
  #given = null; // {blob, bitmap, name}
  #size = [1, 1];
  #mask = null; // a canvas of the size that is drawn; painted where it is drawn anew
  #view = el("canvas", { className: "start-view", role: "img" });
  #note = el("p", { className: "hint", id: "start-note" });
  #file = el("input", { type: "file", id: "start-file", accept: "image/png,image/jpeg,image/webp", className: "unseen",
    ariaLabel: "Picture to begin from" });
  #changed;
  #pixels;

  /** `changed`: told when picture or mask are others; `offered`: gets the files that are chosen; `pixels`: at most. */
  constructor(changed, offered) {
    this.#changed = changed;
    this.#file.addEventListener("change", () => {
      if (this.#file.files[0]) offered(this.#file.files[0]);
      this.#file.value = "";
    });
    this.#show();
  }

  set pixels(most) {
    this.#pixels = most;
  }

  get isGiven() {
    return this.#given !== null;
  }

  get hasMask() {
    return this.#mask !== null;
  }

  /** Width and height of the picture. */
  get sides() {
    return [this.#given.bitmap.width, this.#given.bitmap.height];
  }

  /** Take a file as the picture; raises where it is none. `mask`: a file, light where it is drawn anew. */
  async take(blob, mask = null) {
    const bitmap = await createImageBitmap(blob);
    this.#given = { blob, bitmap, name: blob.name ?? "picture" };
    this.#mask = null;
    if (mask) this.#mask = painted(await createImageBitmap(mask));
    this.#show();
    this.#changed();
  }

  remove() {
    [this.#given, this.#mask] = [null, null];
    this.#show();
    this.#changed();
    this.#file.focus();
  }

  /** The size that is drawn. */
  fit(size) {
    if (size.join() === this.#size.join() || size.some(Number.isNaN)) return;
    this.#size = size;
    if (this.#mask) this.#mask = resized(this.#mask, size);
    if (this.#given) this.#show();
  }

  /** The files that go to the server, and into the history: {image, mask}; null where nothing is given. */
  async files() {
    if (!this.#given) return null;
    const mask = this.#mask && (await maskFile(resized(this.#mask, this.#size)));
    const [x, y, width, height] = this.#part();
    const { blob, bitmap } = this.#given;
    const whole = width === bitmap.width && height === bitmap.height;
    if (whole && width * height <= this.#pixels) return { image: blob, mask };
    const scale = Math.min(1, Math.sqrt(this.#pixels / (width * height)));
    const canvas = el("canvas", { width: Math.floor(width * scale), height: Math.floor(height * scale) });
    canvas.getContext("2d").drawImage(bitmap, x, y, width, height, 0, 0, canvas.width, canvas.height);
    return { image: await pngOf(canvas), mask };
  }

  /** The part of the picture that has the form of what is drawn: x, y, width, height. */
  #part() {
    const [[width, height], [w, h]] = [this.sides, this.#size];
    const ratio = (width * h) / (height * w);
    if (Math.abs(ratio - 1) < SAME_FORM) return [0, 0, width, height];
    const [partWidth, partHeight] = ratio > 1 ? [Math.round((height * w) / h), height] : [width, Math.round((width * h) / w)];
    return [Math.floor((width - partWidth) / 2), Math.floor((height - partHeight) / 2), partWidth, partHeight];
  }

  async #paint() {
    const mask = await new MaskPainter(this.#drawn(this.#size), this.#mask).open();
    if (mask === undefined) return;
    this.#mask = mask;
    this.#show();
    this.#changed();
    byId("start-mask").focus();
  }

  #drawn([width, height]) {
    const canvas = el("canvas", { width, height });
    canvas.getContext("2d").drawImage(this.#given.bitmap, ...this.#part(), 0, 0, width, height);
    return canvas;
  }

  #show() {
    const choose = el("label", { className: "button", htmlFor: "start-file", textContent: this.#given ? "Choose another" : "Choose a picture" });
    const strength = byId("strength-field") ?? el("div", { id: "strength-field" });
    strength.hidden = !this.#given;
    if (!this.#given) {
      byId("start").replaceChildren(el("div", { className: "drop" }, this.#file, choose,
        el("p", { className: "hint", textContent: "or drop or paste one anywhere on this page" })), strength);
      return;
    }
    this.#showPicture();
    byId("start").replaceChildren(el("div", { className: "start" }, this.#view, el("div", { className: "start-side" }, this.#note,
      el("div", { className: "buttons" },
        button(this.#mask ? "Change the mask" : "Paint a mask", () => this.#paint(), { id: "start-mask" }),
        this.#file, choose, button("Remove", () => this.remove(), { className: "quiet" })))), strength);
  }

  #showPicture() {
    const [width, height] = this.#size;
    Object.assign(this.#view, { width, height });
    const context = this.#view.getContext("2d");
    context.drawImage(this.#drawn(this.#size), 0, 0);
    const [, , w, h] = this.#part();
    const cut = w < this.sides[0] || h < this.sides[1];
    const notes = [`${this.sides.join(" × ")}${cut ? ", cut to the form that is drawn" : ""}.`];
    if (this.#mask) {
      context.globalAlpha = 0.6;
      context.drawImage(this.#mask, 0, 0, width, height);
      context.globalAlpha = 1;
      notes.push("Only the painted part is drawn anew.");
    }
    this.#note.textContent = notes.join(" ");
    this.#view.setAttribute("aria-label", `${this.#given.name}, ${notes.join(" ")}`);
  }
}

/** Pictures of files as texts of a body. */
export async function textsOf({ image, mask }) {
  return { image: await dataUrl(image), ...(mask && { mask_image: await dataUrl(mask) }) };
}

function resized(canvas, [width, height]) {
  if (canvas.width === width && canvas.height === height) return canvas;
  const result = el("canvas", { width, height });
  result.getContext("2d").drawImage(canvas, 0, 0, width, height);
  return result;
}

/** A mask's file as a canvas, painted where the file is light. */
function painted(bitmap) {
  const canvas = el("canvas", { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data.set([...MaskPainter.COLOUR, pixels.data[at]], at);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
