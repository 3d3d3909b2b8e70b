"""How the HTTP side of a server works."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

IDEMPOTENCY_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """What the app needs to know.

    Attributes:
        keys: file of API keys; None lets everyone in.
        body_bytes, body_seconds: of one request's body, at most.
        bodies_bytes: of the bodies of all requests that are not answered.
        prompt_bytes: of all texts of a call.
        picture_pixels: of a given picture; those of one call have at most four times as many together.
        root_path: under which a proxy serves the app.
        cors: origins that pages may call the server from.
        aliases: other names of models, such as those that clients have built in.
        log_prompts: whether prompts may stand in the log, and messages of exceptions, which may quote them.
        idempotency_seconds: how long answers are kept for requests with an `Idempotency-Key`.
    """

    keys: Path | None = None
    body_bytes: int = 64 << 20
    bodies_bytes: int = 1 << 30
    body_seconds: float = 30.0
    prompt_bytes: int = 32_000
    picture_pixels: int = 1 << 24
    root_path: str = ""
    cors: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    log_prompts: bool = False
    idempotency_seconds: float = IDEMPOTENCY_SECONDS
