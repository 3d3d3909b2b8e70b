"""The multipart form of `/v1/images/edits`: a picture, perhaps a mask, and fields as text."""

import hashlib
import json
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class EditForm:
    """A form that was read; nothing in it is decoded. `texts`: its fields."""

    image: bytes
    mask: bytes | None
    texts: dict[str, str]

    @classmethod
    async def read(cls, request: Request) -> "EditForm":
        """Read a form. Raises `ApiError`."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiError(400, "expected a multipart/form-data body with image and prompt", "invalid_request")
        files: dict[str, list[bytes]] = {}
        texts: dict[str, str] = {}
        async with request.form(max_files=20, max_fields=MAX_FIELDS, max_part_size=FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    files.setdefault("mask" if name in MASKS else "image" if name in IMAGES else name, []).append(
                        await value.read()
                    )
                elif name in texts:
                    raise ApiError(400, f"the field {name[:80]!r} occurs twice", "invalid_request", param=name[:80])
                elif name in (*IMAGES, *MASKS, *BY_HASH):
                    raise ApiError(400, f"{name}: expected a file, as image or mask", "invalid_request", param=name)
                else:
                    texts[name] = value
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
        return hashlib.sha256(json.dumps([*files, sorted(self.texts.items())]).encode()).digest()

    def fields(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {name: _value(name, text) for name, text in self.texts.items()}

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
    properties = {name: field for name, field in schema["properties"].items() if name not in ("mask_image", "latents")}
    return {**schema, "properties": {**properties, **own}, "required": ["prompt", "image"]}


def _value(name: str, text: Any) -> Any:
    """A field of a form as JSON has it: texts stay texts, numbers and lists are read."""
    schema = body_schema()["properties"].get(name, {})
    kinds = schema.get("type", "string" if "enum" in schema else None)
    if kinds == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
