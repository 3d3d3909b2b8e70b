"""The table of settings: one row for each setting of the server.

Flags, environment variables, keys of the settings file, `--help`, `--print-settings` and the table of `docs/serving.md`
are made from these rows. Adding a setting takes a row here and the code that uses it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from latentrt.serve.messages import ModelSpec

from . import kinds
from .kinds import Kind

# Not LATENTRT_ alone: the limits of calls have that prefix, such as LATENTRT_MAX_STEPS.
PREFIX = "LATENTRT_SERVE_"
_DEVICE = r"cpu|cuda(:\d{1,3})?"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        text: what it does, for --help and the docs.
        kind: which values it takes.
        without: what happens where nothing says it, if its default is None or empty.
    """

    text: str
    kind: Kind
    without: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a server in their normal form. Times are seconds."""

    host: Annotated[str, Setting("address to listen at", kinds.text("HOST", r"[\w.:%-]+", "an address or a host"))] = (
        "127.0.0.1"
    )
    port: Annotated[int, Setting("port to listen at; 0: a free one", kinds.integer(0, 65535))] = 8000
    uds: Annotated[Path | None, Setting("listen at this Unix socket instead", kinds.path())] = None
    root_path: Annotated[
        str, Setting("path that a proxy strips", kinds.text("PATH", r"/[^\s?#]*[^\s?#/]", "a path such as /draw"))
    ] = ""
    cors: Annotated[
        tuple[str, ...],
        Setting(
            "origins whose pages may call the server",
            kinds.items("ORIGINS", r"\*|https?://[^\s/,]+", "origins such as https://example.com, or *"),
        ),
    ] = ()
    proxies: Annotated[
        tuple[str, ...],
        Setting(
            "addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed",
            kinds.networks(),
        ),
    ] = ()
    keys: Annotated[Path | None, Setting("file of API keys; see --new-key", kinds.path(), "no key is asked for")] = None
    auth: Annotated[
        bool,
        Setting("refuse to listen beyond this machine without keys; --no-auth serves everybody", kinds.switch()),
    ] = True
    body_bytes: Annotated[int, Setting("of one request's body, at most", kinds.size_in_bytes())] = 64 * 2**20
    bodies_bytes: Annotated[int, Setting("of the bodies of all requests together, at most", kinds.size_in_bytes())] = (
        2**30
    )
    prompt_bytes: Annotated[int, Setting("of all texts of one call, at most", kinds.integer(1, 10**6))] = 32_000
    picture_pixels: Annotated[int, Setting("of a picture that a client sends, at most", kinds.integer(64, 2**30))] = (
        2**24
    )
    max_images: Annotated[int, Setting("images of one call, at most", kinds.integer(1, 1024))] = 10
    max_steps: Annotated[int, Setting("UNet calls of one image, at most", kinds.integer(1, 10_000))] = 150
    max_chunks: Annotated[int, Setting("chunks of 75 tokens of one text, at most", kinds.integer(1, 128))] = 3
    max_wait: Annotated[
        float, Setting("a job that would wait longer for its first call is refused", kinds.duration())
    ] = 30.0
    max_queue: Annotated[int, Setting("images that may wait, on each device", kinds.integer(1, 10**6))] = 1000
    max_batch: Annotated[int, Setting("images of one UNet call, at most", kinds.integer(1, 64))] = 8
    batch: Annotated[
        int | None,
        Setting(
            "images of one UNet call at every size, measured or not", kinds.integer(1, 64), "the most that are worth it"
        ),
    ] = None
    call_limit: Annotated[
        float,
        Setting("a UNet call that takes longer counts as hung; 20 times the usual time is allowed", kinds.duration(1)),
    ] = 30.0
    client_jobs: Annotated[int, Setting("jobs of one client that may be under way", kinds.integer(1, 10**6))] = 64
    request_timeout: Annotated[
        float, Setting("a request's headers come in this time, and then its body too", kinds.duration(1))
    ] = 30.0
    keep_alive: Annotated[float, Setting("an idle connection is closed after this time", kinds.duration(1))] = 75.0
    drain_seconds: Annotated[
        float, Setting("accepted work may take this long after SIGTERM; then it is cancelled", kinds.duration())
    ] = 60.0
    grace_seconds: Annotated[
        float,
        Setting("after SIGTERM the server answers 503 for this long at least, till others notice", kinds.duration()),
    ] = 0.0
    devices: Annotated[
        tuple[str, ...],
        Setting(
            "such as cpu or cuda:0,cuda:1; a process for each",
            kinds.items("DEVICES", _DEVICE, "devices such as cpu or cuda:0,cuda:1"),
            "the best that is found",
        ),
    ] = ()
    backend: Annotated[
        str,
        Setting("what runs the models", kinds.choice("auto", "tensorrt", "tensorrt_rtx", "openvino", "onnxruntime")),
    ] = "auto"
    engines: Annotated[
        Path | None, Setting("folder of compiled engines, of a single model", kinds.path("DIR"), "in the bundle")
    ] = None
    trust_engines: Annotated[bool, Setting("also load engines that contain host code", kinds.switch())] = False
    sizes: Annotated[
        tuple[tuple[int, int], ...],
        Setting(
            "width x height that clients may ask for", kinds.sizes(), "those of the engines, or the usual aspect ratios"
        ),
    ] = ()
    loras: Annotated[Path | None, Setting("folder of the LoRAs that clients may name", kinds.path("DIR"), "none")] = (
        None
    )
    alias: Annotated[
        Mapping[str, str], Setting("another name of a model, such as gpt-image-1=sd15", kinds.aliases())
    ] = field(default_factory=dict)
    loaded: Annotated[
        int | None,
        Setting("models that are loaded at a time; others are loaded when asked for", kinds.integer(1, 1000), "all"),
    ] = None
    lazy: Annotated[
        bool, Setting("prepare sizes at first use instead of before the server is ready", kinds.switch())
    ] = False
    deterministic: Annotated[
        bool, Setting("one batch size for each picture size, so that pictures do not depend on load", kinds.switch())
    ] = False
    preload: Annotated[bool, Setting("listen only when the models are loaded", kinds.switch())] = False
    state: Annotated[
        Path | kinds.DatabaseUrl | None,
        Setting(
            "folder that keeps jobs through restarts; or postgresql://…, for several servers",
            kinds.state(),
            "jobs are in memory",
        ),
    ] = None
    state_files: Annotated[
        Path | str | None,
        Setting(
            "with postgresql://…: folder or address of fsspec, such as s3://…, that all servers share", kinds.place()
        ),
    ] = None
    state_lease: Annotated[
        float,
        Setting("with postgresql://…: others draw the jobs of a server that is away for longer", kinds.duration(2)),
    ] = 30.0
    state_bytes: Annotated[int, Setting("of kept results, at most", kinds.size_in_bytes())] = 10 * 2**30
    result_ttl: Annotated[float, Setting("results are kept this long", kinds.duration(1))] = 24 * 3600.0
    idempotency_seconds: Annotated[
        float, Setting("an Idempotency-Key and its answer are remembered this long", kinds.duration())
    ] = 600.0
    filter: Annotated[
        str | None,
        Setting(
            "function that sees each finished picture and may refuse it",
            kinds.text("MODULE:FUNCTION", r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "module:function"),
        ),
    ] = None
    log_prompts: Annotated[bool, Setting("prompts may appear in the log", kinds.switch())] = False
    access_log: Annotated[bool, Setting("log each request", kinds.switch())] = True
    log_format: Annotated[str, Setting("of the log", kinds.choice("text", "json"))] = "text"
    models: tuple[ModelSpec, ...] = (ModelSpec("shapes"),)


SETTINGS: Mapping[str, Setting] = {
    row.name: row.type.__metadata__[0] for row in fields(Settings) if hasattr(row.type, "__metadata__")
}
DEFAULTS = Settings()
MODELS_TEXT = "NAME=FOLDER of a bundle, or FOLDER"


def flag_of(name: str) -> str:
    """Such as --max-wait."""
    return f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """Such as LATENTRT_SERVE_MAX_WAIT."""
    return PREFIX + name.upper()


def shown_value(name: str, value: Any) -> str:
    """A value as text; empty where there is none."""
    return SETTINGS[name].kind.show(value) if value not in (None, (), {}, "") else ""


def default_text(name: str) -> str:
    """The default, for --help and the docs."""
    return shown_value(name, getattr(DEFAULTS, name)) or SETTINGS[name].without or "none"


def settings_table() -> str:
    """The table of `docs/serving.md`."""
    lines = ["| flag | variable | key | what it does | default |", "|---|---|---|---|---|"]
    for name, row in SETTINGS.items():
        flag = f"--[no-]{flag_of(name)[2:]}" if not row.kind.metavar else f"{flag_of(name)} {row.kind.metavar}"
        shown = shown_value(name, getattr(DEFAULTS, name))
        default = f"`{shown}`" if shown else default_text(name)
        lines.append(f"| `{flag}` | `{variable_of(name)}` | `{name}` | {row.text} | {default} |")
    return "\n".join(lines) + "\n"
