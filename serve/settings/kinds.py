"""Kinds of settings: which values they take, as text (flags, environment) and as TOML holds them.

A kind reads one value by itself and raises `ValueError` for others. It knows neither names nor sources.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BYTES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = 10 * 365 * 86400.0  # seconds; more is a mistake


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """An address of PostgreSQL; its text shows no password, `secret` is the whole."""

    secret: str = field(repr=False)

    def __str__(self) -> str:
        return without_password(self.secret)


def without_password(text: str) -> str:
    """A text with the passwords of the addresses in it hidden; those of parts that are not escaped, too."""
    text = re.sub(r"(://[^/:@?\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"(password=)[^&\s]*", r"\1***", text)


@dataclass(frozen=True, slots=True)
class Kind:
    """The values of a setting.

    Attributes:
        read: (value, folder) -> the value in its normal form; relative paths are of the folder. Raises `ValueError`.
        expected: what is allowed, for messages.
        metavar: of its flag; "" is a switch.
        many: whether it is a list: its flag may be given several times, its text has commas.
        show: the value as text that `read` takes.
    """

    read: Callable[[Any, Path], Any]
    expected: str
    metavar: str
    many: bool = False
    show: Callable[[Any], str] = str


def text(metavar: str, pattern: str = r"\S.*", expected: str = "text") -> Kind:
    """A text that matches a pattern as a whole."""

    def read(value: Any, _: Path) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value) or "\0" in value:
            raise ValueError
        return value

    return Kind(read, expected, metavar)


def choice(*names: str) -> Kind:
    """One of these names."""
    return text("NAME", "|".join(map(re.escape, names)), f"one of {', '.join(names)}")


def path(metavar: str = "FILE") -> Kind:
    """A file or folder; a relative one in a settings file is of that file's folder."""
    return Kind(_path, "a path", metavar)


def _path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError
    return folder / Path(value).expanduser()


_HOST = r"(?:\[[\da-fA-F:.]+\]|[^\s@/:,?#\[\]]*)(?::\d{1,5})?"
_POSTGRES = re.compile(rf"postgres(?:ql)?://(?:[^\s@]*@)?{_HOST}(?:,{_HOST})*(?:/[^\s@#?]*)?(?:\?[^\s@#]*)?")


def state() -> Kind:
    """A folder, or the address of a database."""

    def read(value: Any, folder: Path) -> Path | DatabaseUrl:
        if not isinstance(value, str) or "://" not in value:
            return _path(value, folder)
        if not _POSTGRES.fullmatch(value):
            raise ValueError
        return DatabaseUrl(value)

    expected = "a path, or postgresql://USER:PASSWORD@HOST/DATABASE with %xx for special characters"
    return Kind(read, expected, "PLACE")


def place() -> Kind:
    """A folder, or an address of another kind."""

    def read(value: Any, folder: Path) -> Path | str:
        if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", value):
            return value
        if isinstance(value, str) and "://" in value:
            raise ValueError
        return _path(value, folder)

    return Kind(read, "a path, or an address such as s3://bucket/folder", "PLACE")


def integer(least: int, most: int) -> Kind:
    """An integer from `least` to `most`."""

    def read(value: Any, _: Path) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value, re.ASCII):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError
        return value

    return Kind(read, f"an integer from {least} to {most}", "N")


def size_in_bytes(least: int = 1024) -> Kind:
    """Bytes, such as 64MiB."""

    def read(value: Any, _: Path) -> int:
        result = int(_with_unit(value, _BYTES))
        if not least <= result < 2**60:
            raise ValueError
        return result

    return Kind(read, f"bytes such as 65536, 64MiB or 10GiB, at least {least}", "BYTES", show=_show(_BYTES))


def duration(least: float = 0.0) -> Kind:
    """Seconds, such as 90, 30s, 15m, 24h or 7d."""

    def read(value: Any, _: Path) -> float:
        result = _with_unit(value, _SECONDS)
        if not least <= result <= LONGEST:
            raise ValueError
        return result

    return Kind(read, f"a time such as 90, 30s, 15m, 24h or 7d, at least {least:g}", "TIME", show=_show(_SECONDS))


def _with_unit(value: Any, units: Mapping[str, int]) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:f}"
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?) ?([A-Za-z]*)", value, re.ASCII) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise ValueError
    return float(match[1]) * units[match[2]]


def _show(units: Mapping[str, int]) -> Callable[[float], str]:
    def show(value: float) -> str:
        unit = max((u for u in units if value and value % units[u] == 0), key=lambda u: units[u], default="")
        return f"{value / units[unit]:g}{unit}" if unit else f"{value:g}" if isinstance(value, float) else str(value)

    return show


def switch() -> Kind:
    """On or off."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

    def read(value: Any, _: Path) -> bool:
        result = value if isinstance(value, bool) else words.get(value.lower()) if isinstance(value, str) else None
        if result is None:
            raise ValueError
        return result

    return Kind(read, "true or false", "", show=lambda value: str(value).lower())


def items(metavar: str, pattern: str, expected: str) -> Kind:
    """Several texts, each of a pattern."""

    def read(value: Any, _: Path) -> tuple[str, ...]:
        found = _parts(value)
        if not found or not all(re.fullmatch(pattern, item) for item in found):
            raise ValueError
        return tuple(dict.fromkeys(found)) if metavar != "DEVICES" else tuple(found)

    return Kind(read, expected, metavar, many=True, show=",".join)


def networks() -> Kind:
    """Addresses and networks, or *."""

    def read(value: Any, _: Path) -> tuple[str, ...]:
        found = _parts(value)
        for item in found:
            if item != "*":
                ipaddress.ip_network(item, strict=False)
        if not found:
            raise ValueError
        return tuple(dict.fromkeys(found))

    return Kind(read, "addresses or networks such as 10.0.0.0/8, or *", "ADDRESSES", many=True, show=",".join)


def sizes() -> Kind:
    """(width, height) pairs, such as 512x512,768x512."""

    def read(value: Any, _: Path) -> tuple[tuple[int, int], ...]:
        pairs = [re.fullmatch(r"(\d{1,5})x(\d{1,5})", item, re.ASCII) for item in _parts(value)]
        result = [(int(pair[1]), int(pair[2])) for pair in pairs if pair is not None]
        if not pairs or len(result) != len(pairs) or any(not side or side % 8 for size in result for side in size):
            raise ValueError
        return tuple(dict.fromkeys(result))

    expected = "sizes such as 512x512,768x512: width x height, multiples of 8"
    return Kind(read, expected, "SIZES", many=True, show=lambda value: ",".join(f"{w}x{h}" for w, h in value))


def aliases() -> Kind:
    """Other names of models: NAME=MODEL, or a table in TOML."""

    def read(value: Any, _: Path) -> dict[str, str]:
        if isinstance(value, Mapping):
            value = [f"{name}={model}" for name, model in value.items()]
        pairs = [item.split("=") for item in _parts(value)]
        if not pairs or any(len(pair) != 2 or not all(pair) for pair in pairs):
            raise ValueError
        return {name.strip(): model.strip() for name, model in pairs}

    expected = "NAME=MODEL, such as gpt-image-1=sd15"
    return Kind(
        read, expected, "NAME=MODEL", many=True, show=lambda value: ",".join(f"{a}={b}" for a, b in value.items())
    )


def _parts(value: Any) -> list[str]:
    """The items of a text with commas, or of a list of such texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(item, str) for item in texts):
        raise ValueError
    return [part.strip() for item in texts for part in item.split(",") if part.strip()]
