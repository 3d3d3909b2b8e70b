// The history: pictures and what they were drawn from, in the browser's database; in memory where there is none.

const PICTURES = "pictures";
const STATE = "state";

const finished = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

function opened() {
  const request = indexedDB.open("latentrt", 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore(PICTURES, { keyPath: "id", autoIncrement: true });
    request.result.createObjectStore(STATE);
  };
  return finished(request);
}

/**
 * Entries: {id, created, model, body, used, seed, width, height, seconds, blob, image, mask, controls}.
 * `body` draws the entry again, with `image`, `mask` and those of `controls` as files; it holds no picture. `used`: the model's own values
 * of what is always told.
 */
export class Store {
  #db;
  #memory = new Map();
  #state = new Map();
  #next = 1;

  static async open() {
    const store = new Store();
    try {
      store.#db = await opened();
    } catch {
      store.#db = null;
    }
    return store;
  }

  /** Whether pictures survive a reload. */
  get lasts() {
    return this.#db !== null;
  }

  /** Keep an entry, and return it with its id. */
  async add(entry) {
    if (!this.#db) {
      const kept = { ...entry, id: this.#next++ };
      this.#memory.set(kept.id, kept);
      return kept;
    }
    return { ...entry, id: await this.#run(PICTURES, "readwrite", (store) => store.add(entry)) };
  }

  /** At most so many entries before an id, newest first. */
  async newest(count, before = Infinity) {
    if (!this.#db) {
      return [...this.#memory.values()].filter((entry) => entry.id < before).reverse().slice(0, count);
    }
    const range = before === Infinity ? null : IDBKeyRange.upperBound(before, true);
    const request = this.#db.transaction(PICTURES).objectStore(PICTURES).openCursor(range, "prev");
    const entries = [];
    for (let cursor = await finished(request); cursor && entries.length < count; cursor = await finished(request)) {
      entries.push(cursor.value);
      cursor.continue();
    }
    return entries;
  }

  async count() {
    return this.#db ? this.#run(PICTURES, "readonly", (store) => store.count()) : this.#memory.size;
  }

  async remove(id) {
    if (this.#db) await this.#run(PICTURES, "readwrite", (store) => store.delete(id));
    this.#memory.delete(id);
  }

  async clear() {
    if (this.#db) await this.#run(PICTURES, "readwrite", (store) => store.clear());
    this.#memory.clear();
  }

  /** Remember a value under a name; undefined forgets it. */
  async remember(name, value) {
    if (!this.#db) this.#state.set(name, value);
    else if (value === undefined) await this.#run(STATE, "readwrite", (store) => store.delete(name));
    else await this.#run(STATE, "readwrite", (store) => store.put(value, name));
  }

  async remembered(name) {
    return this.#db ? this.#run(STATE, "readonly", (store) => store.get(name)) : this.#state.get(name);
  }

  #run(name, mode, work) {
    return finished(work(this.#db.transaction(name, mode).objectStore(name)));
  }
}
