"""Lines of the log."""

import json
import logging
import subprocess
import sys

from latentrt.serve.logs import JsonFormatter


def test_a_line_of_json_holds_what_was_given_as_extra() -> None:
    record = logging.makeLogRecord(
        {
            "name": "a",
            "levelname": "INFO",
            "msg": "%s ü\nb",
            "args": ("x",),
            "created": 0.25,
            "msecs": 250.0,
            "request_id": "7",
        }
    )
    line = JsonFormatter("[cpu] ").format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "a",
        "message": "[cpu] x ü\nb",
        "request_id": "7",
    }


def test_an_exception_stays_in_its_line() -> None:
    try:
        raise ValueError("wrong")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "failed", (), (type(error), error, error.__traceback__))
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "ValueError: wrong" in json.loads(line)["exception"]


def test_no_part_of_a_prompt_is_logged() -> None:
    """The library warns of texts that are cut, with what it left out. In a process of its own, as this sets loggers."""
    code = (
        "import logging; from latentrt.serve.logs import configure; configure('text'); "
        "print(logging.getLogger('latentrt.runtime.text.conditioning').isEnabledFor(logging.WARNING))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "False\n"
