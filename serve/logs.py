"""The log of the server: lines of text or of JSON on stderr. Knows nothing of what is logged."""

import json
import logging
import sys
import time

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what was given as `extra`."""

    def __init__(self, prefix: str = "") -> None:
        """`prefix` goes before each message."""
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._prefix + record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _PLAIN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(log_format: str, *, verbose: bool = False, prefix: str = "", access: bool = True) -> None:
    """Log to stderr as "text" or "json", and nowhere else.

    Args:
        verbose: also what is loaded and where it runs.
        prefix: goes before each message.
        access: whether each request is logged.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter(f"%(asctime)s %(levelname)s: {prefix}%(message)s")
    handler.setFormatter(JsonFormatter(prefix) if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("latentrt.runtime").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("latentrt.runtime.text").setLevel(logging.ERROR)  # its warnings hold parts of prompts
    logging.getLogger("latentrt.serve.http.middleware").setLevel(logging.INFO if access else logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
