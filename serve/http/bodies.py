"""What bodies of calls may hold, made from the table of options: their JSON schema, and their way to a job.

Faces translate their own fields first, and hand the rest on. Knows no routes.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from fastapi import Request

from latentrt.runtime.errors import InputError, SchedulerError, unknown
from latentrt.runtime.latents import PREVIEWS
from latentrt.runtime.request import Call
from latentrt.runtime.request.metadata import BY_HASH
from latentrt.runtime.request.options import OPTIONS, json_options, request_schema
from latentrt.serve.messages import Job, Output, Previews, RefusedError
from latentrt.serve.served_model import ServedModel, require_one_size

from .config import HttpConfig
from .errors import ApiError, wrong_input
from .given_files import decoded_files, fitted
from .keys import Key

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)
T = TypeVar("T")
PARSERS = 2  # threads that read bodies and check calls
PARSING = 64  # requests that may be read and checked at a time
WRITERS = 2  # threads that write answers
VALUES = 100_000  # in one body: JSON of a few bytes becomes objects of many
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

# Short names of options, which are their flags on the command line.
ALIASES: Mapping[str, str] = {
    option.flag.removeprefix("--").replace("-", "_"): name
    for name, option in OPTIONS.items()
    if option.flag and option.json
}


@cache
def call_properties() -> dict[str, Any]:
    """JSON schema of a call's fields besides the prompt: the options of the table, and how its job is treated."""
    properties = request_schema()["properties"]
    text = {"type": "string", "description": "base64 of a file, or a data URL"}
    files = {
        name: {
            "description": properties[name]["description"].partition(":")[0],
            "anyOf": [text, {"type": "array", "items": text, "minItems": 1}],
        }
        for name in BY_HASH
    }
    by_net = {"type": "object", "additionalProperties": text, "minProperties": 1}
    files["control_image"]["anyOf"].append(by_net)
    options = {name: properties[name] for name in json_options()} | files
    aliases = {alias: {**options[name], "description": f"short for {name}"} for alias, name in ALIASES.items()}
    return {
        **options,
        **aliases,
        "model": {"type": "string", "description": "Default: the server's first model"},
        "loras": {"type": "object", "additionalProperties": {"type": "number"}, "description": "name -> weight"},
        "deadline_ms": {"type": "integer", "minimum": 1, "description": "give up if it takes longer than this"},
        "priority": {"enum": ["interactive", "batch"], "description": "batch gets a tenth of the client's share"},
        "output_format": {"enum": [*MEDIA_TYPES], "default": "png"},
        "preview_method": {
            "enum": [*PREVIEWS],
            "description": "of unfinished pictures: rgb is fast, taesd sharper where the model has it, vae exact",
        },
        "output_compression": {"type": "integer", "minimum": 0, "maximum": 100, "description": "of JPEG and WebP"},
    }


class CallReader:
    """Reads bodies and checks calls, in a few threads, so that the event loop goes on."""

    def __init__(self, models: Mapping[str, ServedModel], config: HttpConfig) -> None:
        self._models, self._config = models, config
        self._pool, self._writers = ThreadPoolExecutor(PARSERS, "bodies"), ThreadPoolExecutor(WRITERS, "answers")
        self._reading = 0

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run work of the CPU that comes before a job; raises `RefusedError` where too much of it waits."""
        if self._reading >= PARSING:
            raise RefusedError("busy", f"{self._reading} requests are being read: try again", 1)
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._reading -= 1

    async def answered(self, work: Callable[[], T]) -> T:
        """Run work of the CPU for what has been drawn, which is never refused."""
        return await asyncio.get_running_loop().run_in_executor(self._writers, work)

    async def read(self, request: Request, work: Callable[[dict[str, Any]], T]) -> T:
        """Read the body, a JSON object without duplicate keys, and work with it, both in a thread."""
        data = await request.body()
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise ApiError(400, "the body is a form: expected JSON; pictures are base64 in it", "invalid_request")
        return await self.in_thread(lambda: work(json_object(data)))

    def model(self, name: Any) -> ServedModel:
        """The model of this name or alias; the first one for None."""
        if name is None:
            return next(iter(self._models.values()))
        if not isinstance(name, str):
            raise InputError(f"model={name!r}: expected a name")
        name = self._config.aliases.get(name, name)
        if name not in self._models:
            raise ApiError(404, unknown("model", name, self._models), "model_not_found", param="model")
        return self._models[name]

    def other_names(self, model: ServedModel) -> list[str]:
        """The aliases of a model."""
        return sorted(alias for alias, name in self._config.aliases.items() if name == model.name)

    def job(
        self,
        body: Mapping[str, Any],
        key: Key,
        *,
        previews: Previews | None = None,
        pictures: "tuple[Image.Image, Image.Image | None] | None" = None,
        words: Mapping[str, str] | None = None,
    ) -> Job:
        """The checked job of a body that asks for one pass; see `passes`."""
        job, call = self.passes(body, key, previews=previews, pictures=pictures, words=words)
        require_one_size(call)
        return job

    def passes(
        self,
        body: Mapping[str, Any],
        key: Key,
        *,
        previews: Previews | None = None,
        pictures: "tuple[Image.Image, Image.Image | None] | None" = None,
        words: Mapping[str, str] | None = None,
    ) -> tuple[Job, Call]:
        """The checked job of a body. Raises `InputError`, `ApiError`.

        It draws the call, but for a second pass that is enlarged: that is a job of its own.

        Args:
            body: a prompt and fields of `call_properties`.
            words: what the API calls options, by their names in the table, for messages.
            pictures: that came as files: the one to begin from, and a mask that is light where it is drawn anew.
        """
        fields = {name: value for name, value in body.items() if value is not None}
        model = self.model(fields.pop("model", None))
        loras = model.loras(_loras(fields.pop("loras", {})))
        deadline = _deadline(fields.pop("deadline_ms", None))
        priority = _one_of("priority", fields.pop("priority", "batch" if key.batch else "interactive"))
        method = _one_of("preview_method", fields.pop("preview_method", "auto"))
        previews = None if previews is None else replace(previews, method=method)
        output = _output(fields.pop("output_format", "png"), fields.pop("output_compression", 90))
        prompt = fields.pop("prompt", None)
        options = self._options(fields)
        self._check_prompts(prompt, options)
        options = decoded_files(options, pixels=self._config.picture_pixels, pictures=model.limits.images)
        if pictures is not None:
            image, mask = pictures
            options |= {"image": image, "mask_image": mask}
        words = {ALIASES[name]: name for name in body if name in ALIASES} | dict(words or {})
        with _in_their_words(words):
            call = model.call(prompt, options)
            request = fitted(call.first)
        job = Job(
            uuid4().hex,
            model.name,
            request,
            loras,
            key.name,
            key.weight,
            key.jobs,
            priority,
            deadline,
            output,
            previews,
            second=call.second if call.refines else None,
        )
        if self._config.log_prompts:
            logger.info("job %s of %s: %r, %r", job.id, job.client, prompt, options.get("negative_prompt"))
        return job, call

    def _options(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        known = {*json_options()}
        options: dict[str, Any] = {}
        for name, value in fields.items():
            full = ALIASES.get(name, name)
            if full not in known:
                raise ApiError(
                    400,
                    unknown("field", name, sorted({*call_properties(), "prompt"})),
                    "unknown_parameter",
                    param=name[:80],
                )
            if full in options and options[full] != value:
                raise InputError(f"{name} and {full} are the same option: pass one of them")
            options[full] = value
        return options

    def _check_prompts(self, prompt: Any, options: Mapping[str, Any]) -> None:
        """Bytes of all texts, before any of them is read."""
        texts = [prompt, *(value for name, value in options.items() if name not in BY_HASH)]
        size = sum(len(text.encode(errors="replace")) for value in texts for text in _texts(value))
        if size > self._config.prompt_bytes:
            raise InputError(f"the texts have {size:,} bytes: expected at most {self._config.prompt_bytes:,}")

    def close(self) -> None:
        """End the threads."""
        for pool in (self._pool, self._writers):
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _in_their_words(words: Mapping[str, str]) -> Iterator[None]:
    """Errors call options what the client called them: `words` by their names in the table."""
    try:
        yield
    except (InputError, SchedulerError) as error:
        raise wrong_input(error, words) from error


def json_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises `InputError`."""
    if sum(map(data.count, (b",", b"[", b"{"))) > VALUES:
        raise InputError(f"the body has more than {VALUES:,} values")
    try:
        body = json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(body, dict):
        raise InputError("the body is not a JSON object")
    return body


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("an object has a key twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _loras(given: Any) -> dict[str, float]:
    if not isinstance(given, dict):
        raise InputError("loras: expected an object, name -> weight")
    return given


def _deadline(milliseconds: Any) -> float | None:
    if milliseconds is None:
        return None
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int) or not 1 <= milliseconds <= 10**9:
        raise InputError(f"deadline_ms={milliseconds!r}: expected an integer from 1 to 1000000000")
    return milliseconds / 1000


def _one_of(name: str, value: Any) -> Any:
    allowed = call_properties()[name]["enum"]
    if value not in allowed:
        raise InputError(f"{name}={str(value)[:80]!r}: expected one of {', '.join(allowed)}")
    return value


def _output(kind: Any, quality: Any) -> Output:
    if isinstance(quality, bool) or not isinstance(quality, int) or not 0 <= quality <= 100:
        raise InputError(f"output_compression={quality!r}: expected an integer from 0 to 100")
    return Output(_one_of("output_format", kind), quality)


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
