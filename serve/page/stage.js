// Where the current drawing is seen: its place in the queue, previews, progress, and what went wrong.

import { announce, button, byId, el, shownSeconds } from "./dom.js";

const EXAMPLE = "a large red star on a blue background";

export class Stage {
  #root = byId("stage");
  #tiles = [];
  #calls = [];
  #told = 0; // quarters of the progress that screen readers know of
  #status = el("p", { className: "status" });
  #bar = el("progress", { max: 1, ariaLabel: "Progress" });
  #hooks;
  #start = 0;

  /** `hooks`: open(entry), cancel(), again(), example(text), begun(body, files), and over(error, entries) at the end. */
  constructor(hooks) {
    this.#hooks = hooks;
    this.empty();
  }

  empty() {
    this.#root.replaceChildren(el("div", { className: "empty" },
      el("img", { src: "page/icon.svg", alt: "", width: 56, height: 56 }),
      el("h2", { textContent: "Describe a picture, then press Draw" }),
      el("p", { className: "hint", textContent: "You see it emerge step by step, and find it in the history below." }),
      button(`Try “${EXAMPLE}”`, () => this.#hooks.example(EXAMPLE))));
  }

  begun(body, files) {
    this.#hooks.begun(body, files);
    const count = body.num_images_per_prompt ?? 1;
    this.#calls = Array.from({ length: count }, () => 0);
    this.#told = 0;
    this.#start = performance.now();
    this.#tiles = this.#calls.map((_, at) => {
      const image = el("img", { alt: `Picture ${at + 1} of ${count}, unfinished`, hidden: true });
      const tile = el("div", { className: "tile drawing" }, image);
      tile.style.setProperty("--ratio", `${body.width} / ${body.height}`);
      tile.style.setProperty("--most", `${Math.max(body.width, 384)}px`);
      return tile;
    });
    this.#bar.removeAttribute("value");
    const cancel = button("Cancel", () => this.#hooks.cancel(), { id: "cancel" });
    this.#root.replaceChildren(
      el("div", { className: "stage-top" }, this.#status, cancel), this.#bar,
      el("div", { className: `tiles tiles-${Math.min(count, 3)}` }, ...this.#tiles));
    this.#say("Sending …", "Drawing has begun");
  }

  #say(text, told) {
    this.#status.textContent = text;
    if (told) announce(told);
  }

  waiting({ position, seconds }) {
    const ahead = position ? `Waiting, ${position} ${position === 1 ? "picture" : "pictures"} before yours` : "Waiting to begin";
    this.#say(seconds ? `${ahead} · done in about ${shownSeconds(seconds)}` : ahead);
  }

  retrying(message, seconds, now) {
    if (!byId("retry-now")) {
      byId("cancel").before(button("Try now", now, { id: "retry-now" }));
      announce(`${message} Trying again in ${seconds} seconds`);
    } else byId("retry-now").onclick = now;
    this.#status.textContent = `${message} Trying again in ${seconds} s`;
  }

  broken() {
    this.#say("The connection broke. Connecting again …", "The connection broke. Connecting again");
  }

  progress(image, call, calls) {
    byId("retry-now")?.remove();
    this.#calls[image] = call / calls;
    const part = this.#calls.reduce((sum, one) => sum + one, 0) / this.#calls.length;
    this.#bar.value = part;
    this.#say(this.#calls.length === 1 ? `Step ${call} of ${calls}` : `${Math.round(part * 100)} % of ${this.#calls.length} pictures`);
    if (Math.floor(part * 4) > this.#told) {
      this.#told = Math.floor(part * 4);
      announce(`${this.#told * 25} percent`);
    }
  }

  preview(image, url) {
    const [shown] = this.#tiles[image]?.children ?? [];
    if (shown) Object.assign(shown, { src: url, hidden: false });
  }

  picture(image, entry) {
    const url = URL.createObjectURL(entry.blob);
    const picture = el("img", { src: url, alt: entry.body.prompt || "A picture without a prompt", onload: () => URL.revokeObjectURL(url) });
    const open = el("button", { type: "button", className: "tile", onclick: () => this.#hooks.open(entry) }, picture);
    for (const name of ["--ratio", "--most"]) open.style.setProperty(name, this.#tiles[image].style.getPropertyValue(name));
    this.#tiles[image].replaceWith(open);
    this.#tiles[image] = open;
  }

  done(entries) {
    const seconds = shownSeconds((performance.now() - this.#start) / 1000);
    const what = entries.length === 1 ? `Seed ${entries[0].seed}` : `${entries.length} pictures`;
    this.#end(el("p", { className: "status", textContent: `${what} · ${seconds}` }),
      entries.length === 1 ? "The picture is done" : `${entries.length} pictures are done`);
    this.#hooks.over(null, entries);
  }

  failed(error) {
    const message = error?.message || "Something went wrong in this page.";
    const again = button("Try again", () => this.#hooks.again());
    this.#keepFocus(() => this.#root.replaceChildren(el("div", { className: "empty" },
      el("h2", { textContent: "That did not work" }), el("p", { className: "problem", role: "alert", textContent: message }), again)));
    this.#hooks.over(error, []);
  }

  cancelled() {
    this.#keepFocus(() => this.empty());
    announce("Cancelled");
    this.#hooks.over(null, []);
  }

  /** Where what had the focus goes away, it moves to the button that draws. */
  #keepFocus(change) {
    const focused = this.#root.contains(document.activeElement);
    change();
    if (focused) byId("draw").focus();
  }

  #end(line, told) {
    announce(told);
    const focused = this.#root.contains(document.activeElement);
    this.#bar.remove();
    this.#root.querySelector(".stage-top").replaceChildren(line);
    if (focused) this.#tiles[0].focus();
  }
}
