"""The multipart form of `/v1/images/edits`: a picture, perhaps a mask, and fields as text."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from fastapi import Request
from starlette.datastructures import UploadFile

from latentrt.runtime.errors import InputError
from latentrt.runtime.request.metadata import BY_HASH

from .errors import ApiError
from .given_files import picture, transparent_as_white
from .openai_fields import body_schema

if TYPE_CHECKING:
    from PIL import Image

IMAGES = ("image", "image[]")
MASKS = ("mask",)
MAX_FIELDS = 100
FIELD_BYTES = 1 << 20
_PART_OF = re.compile(r"(\w+)\[([^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class EditForm:
    """A form that was read; nothing in it is decoded. `texts`: its fields, which may repeat."""

    image: bytes
    mask: bytes | None
    texts: list[tuple[str, str]]

    @classmethod
    async def read(cls, request: Request) -> "EditForm":
        """Read a form. Raises `ApiError`."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiError(400, "expected a multipart/form-data body with image and prompt", "invalid_request")
        files: dict[str, list[bytes]] = {}
        texts: list[tuple[str, str]] = []
        async with request.form(max_files=20, max_fields=MAX_FIELDS, max_part_size=FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    files.setdefault("mask" if name in MASKS else "image" if name in IMAGES else name, []).append(
                        await value.read()
                    )
                elif name in (*IMAGES, *MASKS, *BY_HASH):
                    raise ApiError(400, f"{name}: expected a file, as image or mask", "invalid_request", param=name)
                else:
                    texts.append((name, value))
        if unknown := {*files} - {"image", "mask"}:
            raise ApiError(
                400, f"the file {min(unknown)[:80]!r} is not known: expected image and mask", "invalid_request"
            )
        if len(files.get("image", ())) != 1 or len(files.get("mask", ())) > 1:
            raise ApiError(400, "expected one image, and at most one mask", "invalid_request", param="image")
        return cls(files["image"][0], files["mask"][0] if "mask" in files else None, texts)

    def digest(self) -> bytes:
        """Of all that the form says; its bytes differ each time, by their boundary."""
        files = [None if file is None else hashlib.sha256(file).hexdigest() for file in (self.image, self.mask)]
        return hashlib.sha256(json.dumps([*files, sorted(self.texts, key=itemgetter(0))]).encode()).digest()

    def fields(self) -> dict[str, Any]:
        """The fields as JSON has them. Raises `InputError`."""
        return fields_of(self.texts)

    def pictures(self, pixels: int) -> "tuple[Image.Image, Image.Image | None]":
        """The picture, and the mask, light where the picture is drawn anew. Raises `InputError`."""
        image = picture("image", self.image, pixels=pixels)
        if self.mask is None:
            return image, None
        mask = transparent_as_white(picture("mask", self.mask, pixels=pixels))
        if mask.size != image.size:
            raise InputError(f"the mask has {mask.size} pixels and the image {image.size}: expected the same size")
        return image, mask


def edit_schema() -> dict[str, Any]:
    """JSON schema of the form."""
    schema = body_schema()
    file = {"type": "string", "format": "binary"}
    own = {
        "image": {**file, "description": "the picture"},
        "mask": {**file, "description": "transparent where it is drawn anew"},
    }
    files = {name for name in BY_HASH if name != "image"}
    properties = {name: field for name, field in schema["properties"].items() if name not in files}
    return {**schema, "properties": {**properties, **own}, "required": ["prompt", "image"]}


def fields_of(texts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Fields of a form as JSON has them. Lists are fields that repeat, or NAME[]; objects are NAME[KEY].

    Raises `InputError` for a name that is both.
    """
    result: dict[str, Any] = {}
    for given, text in texts:
        match = _PART_OF.fullmatch(given)
        name, key = match.groups() if match else (given, None)
        value, before = _value(name, text, part=bool(key)), result.get(name)
        if before is not None and isinstance(before, dict) != bool(key):
            raise InputError(f"{name[:80]}: the form has it as a value, and as an object")
        if key:
            result.setdefault(name, {})[key] = value
        elif key is None and name not in result:
            result[name] = value
        else:
            result[name] = [*(before if isinstance(before, list) else [] if before is None else [before]), value]
    return result


def _value(name: str, text: str, *, part: bool) -> Any:
    """A field: what may be a text is one, numbers and lists are read. `part`: a value in an object."""
    schema = body_schema()["properties"].get(name, {})
    kinds = [kind.get("type", "string" if "enum" in kind else None) for kind in schema.get("anyOf", [schema])]
    may_be_object = "object" in kinds or ["string", "object"] in kinds
    if not may_be_object and ("string" in kinds or ["string", "null"] in kinds):
        return text
    try:
        value = json.loads(text, parse_constant=str)  # NaN is not JSON
    except (ValueError, RecursionError):
        return text
    return value if part or not may_be_object or isinstance(value, dict) else text
