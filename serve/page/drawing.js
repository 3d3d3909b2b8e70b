// One drawing at a time: a native job from its call to its pictures. Goes on after a reload, and where a connection broke.

import { ServerError, call, follow, inWords, json } from "./api.js";
import { controlTexts } from "./controls.js";
import { pause } from "./dom.js";
import { textsOf } from "./picture.js";

const PREVIEWS = 12; // of each picture
const ASKING = 1500; // milliseconds between questions for the place in the queue
const ACTIVE = "active"; // the name of the drawing in the store
const TRIES = 20; // of a call that the server has no room for

/**
 * Tells a view what happens: begun(body, files), waiting({position, seconds}), retrying(message, seconds, now), broken(), progress(image,
 * call, calls), preview(image, url), picture(image, entry), and at the end done(entries), failed(error) or cancelled().
 */
export class Drawing {
  #store;
  #view;
  #stop = null; // an AbortController while something is drawn
  #job = null;

  constructor(store, view) {
    [this.#store, this.#view] = [store, view];
  }

  get isActive() {
    return this.#stop !== null;
  }

  /** Draw a body; `files`: {image, mask, controls}, or null. */
  draw(body, files) {
    return this.#run(body, files, async (signal) => {
      const texts = { ...(files?.image && (await textsOf(files))), ...(await controlTexts(files?.controls)) };
      const job = await this.#submitted({ ...body, ...texts, previews: PREVIEWS }, signal);
      await this.#store.remember(ACTIVE, { id: job.id, body, files }).catch(() => {});
      return job;
    });
  }

  /** Go on with what was drawn when the page was left. */
  async resume() {
    const active = await this.#store.remembered(ACTIVE).catch(() => undefined);
    if (active) await this.#run(active.body, active.files, (signal) => json(`v1/jobs/${active.id}`, { signal }));
  }

  cancel() {
    if (!this.#stop) return;
    if (this.#job) call(`v1/jobs/${this.#job}`, { method: "DELETE" }).catch(() => {});
    this.#stop.abort();
  }

  async #run(body, files, begun) {
    if (this.#stop) return;
    const { signal } = (this.#stop = new AbortController());
    this.#view.begun(body, files);
    try {
      const job = await begun(signal);
      this.#job = job.id;
      if (signal.aborted) await call(`v1/jobs/${job.id}`, { method: "DELETE" }).catch(() => {});
      signal.throwIfAborted();
      this.#view.done(await this.#followed(job, body, files, signal));
    } catch (error) {
      if (signal.aborted) this.#view.cancelled();
      else this.#view.failed(error);
    } finally {
      [this.#stop, this.#job] = [null, null];
      await this.#store.remember(ACTIVE, undefined).catch(() => {});
    }
  }

  /** The job of a body. Where the server has no room, waits as long as it says. A call that was sent is never left
   *  without its answer, as its job could not be cancelled then. */
  async #submitted(body, signal) {
    const once = Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(16)).join("-");
    for (let tries = 1; ; tries++) {
      signal.throwIfAborted();
      try {
        return await json("v1/jobs", { method: "POST", body, headers: { "Idempotency-Key": once } });
      } catch (error) {
        if (!(error instanceof ServerError) || error.after === null || tries >= TRIES) throw error;
        await this.#counted(error, signal);
      }
    }
  }

  async #counted(error, signal) {
    const end = Date.now() + error.after * 1000;
    let now = false;
    while (!now && Date.now() < end) {
      this.#view.retrying(error.message, Math.ceil((end - Date.now()) / 1000), () => (now = true));
      await pause(250, signal);
    }
    this.#view.waiting({ position: null, seconds: null });
  }

  async #followed(job, body, files, signal) {
    const entries = new Map();
    const waits = new AbortController();
    signal.addEventListener("abort", () => waits.abort(), { once: true });
    this.#queue(job, waits.signal);
    try {
      for await (const { name, data } of follow(job.id, { signal, broken: () => this.#view.broken() })) {
        if (name === "state" && data.status !== "waiting") waits.abort();
        else if (name === "progress") this.#view.progress(data.image, data.call, data.calls);
        else if (name === "preview") this.#view.preview(data.image, `data:image/${data.format};base64,${data.data}`);
        else if (name === "picture") entries.set(data.image, await this.#kept(job, data, body, files, signal));
        else if (name === "failed") throw new ServerError(inWords(data.error?.kind, data.error?.message), { code: data.error?.kind });
        else if (name === "cancelled") throw new ServerError("The drawing was cancelled.", { code: "cancelled" });
      }
    } finally {
      waits.abort();
    }
    return [...entries.values()];
  }

  /** Tell the place in the queue until the job begins. */
  async #queue(job, signal) {
    try {
      for (let now = job; now.status === "waiting"; now = await json(`v1/jobs/${job.id}`, { signal })) {
        if (!signal.aborted) this.#view.waiting({ position: now.position, seconds: now.eta_s });
        await pause(ASKING, signal);
      }
    } catch {
      // the events say the rest
    }
  }

  /** Fetch a picture and keep it in the history. */
  async #kept(job, { image, seed, width, height }, body, files, signal) {
    const blob = await (await call(`v1/jobs/${job.id}/images/${image}`, { signal })).blob();
    const { timings, request } = await json(`v1/jobs/${job.id}`, { signal });
    const own = { ...body, seed };
    delete own.num_images_per_prompt;
    const entry = {
      created: Date.now(), model: job.model, body: own, seed, width, height, blob,
      seconds: timings.total === undefined ? null : (timings.total - (timings.queue ?? 0)) / 1000,
      used: { num_inference_steps: request?.num_inference_steps, guidance_scale: request?.guidance_scale },
      image: files?.image ?? null, mask: files?.mask ?? null, controls: files?.controls ?? null,
    };
    const kept = await this.#store.add(entry).catch(() => entry);
    this.#view.picture(image, kept);
    return kept;
  }
}
