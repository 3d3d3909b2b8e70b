"""Values that JSON cannot hold: pictures, arrays and plans, as bytes under their hash and a note of their form.

What comes back is equal in every bit. Knows nothing of what the values are for.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from latentrt.runtime.scheduler import Plan
from latentrt.runtime.scheduler.document import plan_from_document, plan_to_document

# Marks a note in place of a value, and says which kind of value it is.
FORM = "$kept"
ORIENTATION = 0x0112  # EXIF: which way is up
Inputs = dict[str, bytes]
Read = Callable[[str], bytes]


def kept(value: Any, inputs: Inputs) -> Any:
    """A value as JSON; bytes that it needs are added to `inputs`."""
    if isinstance(value, Plan):
        return {FORM: "plan", "sha256": _added(json.dumps(plan_to_document(value)).encode(), inputs)}
    if isinstance(value, np.ndarray):
        return {
            FORM: "array",
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "sha256": _added(np.ascontiguousarray(value).tobytes(), inputs),
        }
    if isinstance(value, Image.Image):
        return {FORM: "picture", **_picture_form(value), "sha256": _added(value.tobytes(), inputs)}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [kept(entry, inputs) for entry in value]
    if isinstance(value, Mapping):  # a client's own object may look like a note
        return {FORM: "object", "value": {key: kept(entry, inputs) for key, entry in value.items()}}
    return value


def restored(value: Any, read: Read) -> Any:
    """The value that `kept` has noted; `read` has the bytes of a hash."""
    if isinstance(value, list):
        return [restored(entry, read) for entry in value]
    if not isinstance(value, Mapping) or FORM not in value:
        return value
    if value[FORM] == "object":
        return {key: restored(entry, read) for key, entry in value["value"].items()}
    data = read(value["sha256"])
    if value[FORM] == "plan":
        return plan_from_document(json.loads(data))
    if value[FORM] == "array":
        return np.frombuffer(data, np.dtype(value["dtype"])).reshape(value["shape"]).copy()
    return _picture(value, data)


def hashes_in(document: Any) -> set[str]:
    """The hashes of all values that are noted anywhere in a document."""
    if isinstance(document, Mapping):
        if FORM in document and document[FORM] != "object":
            return {document["sha256"]}
        document = list((document["value"] if FORM in document else document).values())
    if isinstance(document, list):
        return set().union(*map(hashes_in, document))
    return set()


def _added(data: bytes, inputs: Inputs) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    inputs[sha256] = data
    return sha256


def _picture_form(picture: Image.Image) -> dict[str, Any]:
    """What a picture has besides its bytes and decides how it is drawn: palette, transparency, orientation."""
    picture.load()
    form: dict[str, Any] = {"mode": picture.mode, "size": list(picture.size)}
    if picture.mode in ("P", "PA") and picture.palette is not None:
        palette = picture.palette
        form["palette"] = [palette.mode, palette.tobytes().hex()]
    transparency = picture.info.get("transparency")
    if isinstance(transparency, bytes):
        form["transparency"] = {"hex": transparency.hex()}
    elif transparency is not None:
        form["transparency"] = list(transparency) if isinstance(transparency, tuple) else transparency
    if (turned := _orientation(picture)) != 1:
        form["orientation"] = turned
    return form


def _orientation(picture: Image.Image) -> int:
    """Which way is up, where Pillow can turn the picture by it; damaged EXIF data say nothing."""
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
        ImageOps.exif_transpose(picture)
    except Exception:  # of any type: what Pillow's parser of EXIF data raises
        return 1
    return orientation if isinstance(orientation, int) else 1


def _picture(form: Mapping[str, Any], data: bytes) -> Image.Image:
    picture = Image.frombytes(form["mode"], tuple(form["size"]), data)
    if "palette" in form:
        mode, colours = form["palette"]
        picture.putpalette(bytes.fromhex(colours), mode)
    transparency = form.get("transparency")
    if isinstance(transparency, Mapping):
        picture.info["transparency"] = bytes.fromhex(transparency["hex"])
    elif transparency is not None:
        picture.info["transparency"] = tuple(transparency) if isinstance(transparency, list) else transparency
    if "orientation" in form:
        exif = Image.Exif()
        exif[ORIENTATION] = form["orientation"]
        picture.info["exif"] = exif.tobytes()
    return picture
