"""What servers of a store tell each other by NOTIFY, as text: "SERVER KIND…". Knows no database."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from latentrt.serve.messages import Progress

CHANGED, WAITS, PROGRESS = "=", "+", "~"
_MOST = 7900  # bytes; PostgreSQL refuses 8000


@dataclass(frozen=True, slots=True)
class Notice:
    """What a server says.

    Attributes:
        kind: CHANGED or WAITS with the id of a job, PROGRESS with calls of images.
    """

    server: str
    kind: str
    job: str
    progress: Sequence[Progress]


def notice_of(text: str) -> Notice | None:
    """Read a notice; None for what is none."""
    server, _, rest = text.partition(" ")
    kind, body = rest[:1], rest[1:]
    if kind in (CHANGED, WAITS):
        return Notice(server, kind, body, ())
    if kind == PROGRESS:
        try:
            return Notice(server, kind, "", [Progress(*values) for values in json.loads(body)])
        except (ValueError, TypeError):
            return None
    return None


def progress_texts(server: str, events: Sequence[Progress]) -> Iterator[str]:
    """Notices of all these calls, each as long as PostgreSQL takes them."""
    start = f"{server} {PROGRESS}"
    items: list[str] = []
    length = len(start) + 1
    for event in events:
        item = json.dumps([event.job, event.image, event.call, event.calls], separators=(",", ":"))
        if items and length + len(item) + 1 > _MOST:
            yield f"{start}[{','.join(items)}]"
            items, length = [], len(start) + 1
        items.append(item)
        length += len(item) + 1
    if items:
        yield f"{start}[{','.join(items)}]"
