// The text in a PNG file, from which its picture can be drawn again.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const FORMAT = "latentrt.picture/1";
const MOST = 1 << 22; // bytes of one text

/** What a picture was drawn from, as `latentrt` wrote it; null where the file does not say. */
export async function recordedIn(blob) {
  try {
    const texts = await textsOf(blob);
    const document = JSON.parse((texts.latentrt ?? "null").replace(/("seed": ?)(-?\d{16,})/g, '$1"$2"'));
    return document?.format === FORMAT ? document : null;
  } catch {
    return null; // a damaged text is none
  }
}

/** The texts of a PNG file by their keywords; none for other files. */
export async function textsOf(blob) {
  const head = new Uint8Array(await blob.slice(0, 8).arrayBuffer());
  const texts = {};
  if (!SIGNATURE.every((byte, at) => head[at] === byte)) return texts;
  for (let at = 8; at + 12 <= blob.size; ) {
    const view = new DataView(await blob.slice(at, at + 8).arrayBuffer());
    const length = view.getUint32(0);
    const kind = latin(new Uint8Array(view.buffer, 4, 4));
    if (kind === "IEND") break;
    if (/^(tEXt|zTXt|iTXt)$/.test(kind) && length <= MOST) {
      const data = new Uint8Array(await blob.slice(at + 8, at + 8 + length).arrayBuffer());
      const [keyword, text] = await textOf(kind, data);
      texts[keyword] = text;
    }
    at += length + 12;
  }
  return texts;
}

const latin = (bytes) => new TextDecoder("latin1").decode(bytes);
const utf8 = (bytes) => new TextDecoder().decode(bytes);

async function textOf(kind, data) {
  const end = data.indexOf(0);
  const keyword = latin(data.subarray(0, end));
  if (kind === "tEXt") return [keyword, latin(data.subarray(end + 1))];
  if (kind === "zTXt") return [keyword, latin(await inflated(data.subarray(end + 2)))];
  const language = data.indexOf(0, end + 3);
  const translated = data.indexOf(0, language + 1);
  const text = data.subarray(translated + 1);
  return [keyword, utf8(data[end + 1] ? await inflated(text) : text)];
}

async function inflated(bytes) {
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const parts = [];
  let size = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    size += part.value.length;
    if (size > MOST) throw new Error("the text is too long");
    parts.push(part.value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
