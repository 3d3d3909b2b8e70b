// Calls of the server: key, errors in plain words, and the events of jobs. Addresses are relative, for proxies.

import { pause } from "./dom.js";

const KEY = "latentrt.key";
const ENDS = new Set(["done", "failed", "cancelled"]);
const BREAKS = 8; // times in a row that a connection may break

// Codes of answers and kinds of failed jobs. For all others, the server's own words are shown.
const WORDS = {
  server_busy: "The server has too much to do right now.",
  too_many_jobs: "You have as many pictures under way as this server allows.",
  server_starting: "The server is loading its models.",
  server_stopping: "The server is about to stop.",
  device_restarted: "The device that draws had to start again.",
  store_full: "The server keeps as many results as it may. Try again later.",
  store_unavailable: "The server cannot keep jobs right now.",
  results_expired: "The server has removed these pictures, as their time was over.",
  job_not_found: "The server does not know this job any more.",
  body_too_large: "The picture to begin from is too large for this server.",
  origin_not_allowed: "This server does not take calls from this page.",
  internal_error: "Something went wrong inside of the server.",
  deadline: "There was not enough time to finish.",
  non_finite: "The model failed on this picture. Another seed or lower guidance may work.",
  filtered: "The server's filter refused this picture.",
  out_of_memory: "The server ran out of memory. A smaller size or fewer pictures may work.",
  crashed: "The device that draws failed and has to start again.",
  poison: "This call makes the device fail, so the server gave up.",
  model_changed: "The model or a LoRA was replaced while the job waited. Draw it again.",
  stopped: "The server stopped before it was finished.",
  internal: "Something went wrong inside of the server.",
};

/** An answer that is an error. `after`: seconds, where the same call may succeed later. `param`: the field it is about. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = "", param = null, after = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, after });
  }
}

/** Plain words for a code or kind; otherwise the server's message as a sentence. */
export function inWords(code, message) {
  const text = WORDS[code] ?? message ?? "The server answered with an error.";
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

const storages = () => {
  try {
    return [window.localStorage, window.sessionStorage];
  } catch {
    return []; // blocked by the browser's settings
  }
};
let key = storages().map((storage) => storage.getItem(KEY)).find(Boolean) ?? null;
let askForKey = async () => null;

/** `ask(wrong)` resolves with {key, remember}, or null. */
export function whenKeyIsNeeded(ask) {
  let asking = null;
  askForKey = (wrong) => (asking ??= ask(wrong).finally(() => (asking = null)));
}

export const hasKey = () => key !== null;

export function setKey(value, remember) {
  key = value;
  for (const storage of storages()) storage.removeItem(KEY);
  const [local, session] = storages();
  if (value) (remember ? local : session)?.setItem(KEY, value);
}

/** Seeds above 2^53 stay as they are: as digits in a text. */
export const parsed = (text) => JSON.parse(text.replace(/("seed": ?)(-?\d{16,})/g, '$1"$2"'));
const written = (body) => JSON.stringify(body).replace(/("seed":)"(-?\d+)"/g, "$1$2");

/** An answer of the server; raises `ServerError`. Asks for a key where one is needed. */
export async function call(path, { method = "GET", body, signal, headers = {} } = {}) {
  for (;;) {
    const sent = key;
    const answer = await answered(path, {
      method, signal, cache: "no-store",
      headers: {
        ...headers,
        ...(sent && { Authorization: `Bearer ${sent}` }),
        ...(body && { "Content-Type": "application/json" }),
      },
      body: body && written(body),
    });
    if (answer.ok) return answer;
    if (answer.status !== 401) throw await errorOf(answer);
    if (key === sent) {
      const given = await askForKey(sent !== null);
      if (!given) throw await errorOf(answer);
      setKey(given.key, given.remember);
    }
  }
}

async function answered(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError("The server cannot be reached.");
  }
}

async function errorOf(answer) {
  const error = await answer.json().then((body) => body.error, () => null);
  const after = Number(answer.headers.get("Retry-After"));
  const message = answer.status === 401 ? "This server needs a valid API key." : inWords(error?.code, error?.message);
  return new ServerError(message, {
    status: answer.status, code: error?.code, param: error?.param, after: after > 0 ? after : null,
  });
}

export const json = async (path, options) => parsed(await (await call(path, options)).text());

/** Events {id, name, data} of a job until its end. Goes on where a connection broke; `broken` is told each time. */
export async function* follow(id, { signal, broken }) {
  let last = null;
  for (let breaks = 0; ; breaks++) {
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const answer = await call(`v1/jobs/${id}/events`, { signal, headers });
      for await (const event of eventsOf(answer.body)) {
        [last, breaks] = [event.id, 0];
        yield event;
        if (ENDS.has(event.name)) return;
      }
    } catch (error) {
      const passes = !(error instanceof ServerError) || error.status === 0 || error.status === 503;
      if (signal.aborted || !passes || breaks >= BREAKS) throw error;
    }
    broken();
    await pause(Math.min(500 * 2 ** breaks, 10_000), signal);
  }
}

async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const fields = Object.fromEntries(part.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2)));
        if (fields.event) yield { id: fields.id, name: fields.event, data: parsed(fields.data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
