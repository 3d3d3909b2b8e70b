"""API keys: a TOML file of hashes, read again when it changes. Knows headers, and nothing of routes.

[[key]]
name = "alice"
sha256 = "…"          # of the key; `latentrt serve --new-key alice --keys FILE` makes both
weight = 2.0          # share of the device, in proportion to others; default 1
jobs = 16             # that may be under way; default: the server's
batch = true          # whether its work is of priority "batch" unless a request says otherwise
admin = false
"""

import base64
import hashlib
import hmac
import logging
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import InputError, unknown
from latentrt.runtime.files import written_whole

from .errors import ApiError

logger = logging.getLogger(__name__)
PREFIX = "sk-latentrt-"


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of the file, or whoever may use a server without keys."""

    name: str
    sha256: str = ""
    weight: float = 1.0
    jobs: int | None = None
    batch: bool = False
    admin: bool = False


class Keys:
    """The keys of a server; without a file, everyone may use it and is known by address."""

    def __init__(self, file: Path | None) -> None:
        """Raises `InputError` for a file that cannot be used."""
        self._file = file
        self._read_at: tuple[int, int] | None = None
        self._keys: tuple[Key, ...] = ()
        if file is not None:
            self._keys, self._read_at = read_keys(file), _stamp(file)

    def client(self, headers: Mapping[str, str], address: str) -> Key:
        """Who sends a request; raises `ApiError` 401."""
        if self._file is None:
            return Key(address)
        given = hashlib.sha256(_given_key(headers).encode()).hexdigest()
        found = None
        for key in self._current():  # all of them, so that the time says nothing about which one it is
            if hmac.compare_digest(key.sha256, given):
                found = key
        if found is None:
            challenge = {"WWW-Authenticate": 'Bearer realm="latentrt"'}
            raise ApiError(
                401, "this server needs a valid key: Authorization: Bearer KEY", "invalid_api_key", headers=challenge
            )
        return found

    def _current(self) -> tuple[Key, ...]:
        """The keys of the file as it is now; those read before where it is damaged."""
        assert self._file is not None
        stamp = _stamp(self._file)
        if stamp != self._read_at:
            self._read_at = stamp
            try:
                self._keys = read_keys(self._file)
                logger.info("read %d keys again", len(self._keys))
            except InputError as error:
                logger.error("the keys stay as they were: %s", error)
        return self._keys


def read_keys(file: Path) -> tuple[Key, ...]:
    """The entries of a file of keys. Raises `InputError`."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as a file of keys: {error}") from error
    entries = document.get("key", [])
    if not isinstance(entries, list) or set(document) - {"key"}:
        raise InputError(f"{file}: expected entries [[key]] and nothing else")
    keys = tuple(_key(file, number, entry) for number, entry in enumerate(entries, 1))
    for field in ("name", "sha256"):
        values = [getattr(key, field) for key in keys]
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise InputError(f"{file}: two keys have the {field} {twice!r}")
    return keys


def _key(file: Path, number: int, entry: Any) -> Key:
    known = [field.name for field in fields(Key)]
    if not isinstance(entry, dict):
        raise InputError(f"{file}: key {number} is not a table")
    for name in entry:
        if name not in known:
            raise InputError(f"{file}: key {number}: {unknown('field', name, known)}")
    name, sha256 = entry.get("name"), entry.get("sha256")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise InputError(
            f"{file}: key {number} has the name {name!r}: expected 1 to 64 letters, digits, or one of . @ - _"
        )
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise InputError(f"{file}: the key {name} needs sha256, 64 hexadecimal digits")
    weight, jobs = entry.get("weight", 1.0), entry.get("jobs")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.001 <= weight <= 1000:
        raise InputError(f"{file}: the key {name} has the weight {weight!r}: expected a number from 0.001 to 1000")
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise InputError(f"{file}: the key {name} has jobs = {jobs!r}: expected an integer >= 1")
    for flag in ("batch", "admin"):
        if not isinstance(entry.get(flag, False), bool):
            raise InputError(f"{file}: the key {name} has {flag} = {entry[flag]!r}: expected true or false")
    return Key(name, sha256, float(weight), jobs, entry.get("batch", False), entry.get("admin", False))


def new_key(file: Path, name: str) -> str:
    """Add a key to a file, which may be new, and return it; only its hash is kept. Raises `InputError`."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    existing = read_keys(file) if text else ()
    if any(key.name == name for key in existing):
        raise InputError(f"{file} has a key of the name {name!r}: choose another name, or delete its entry first")
    key = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    _key(file, len(existing) + 1, {"name": name, "sha256": digest})
    entry = f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\n'
    with written_whole(file) as temporary:
        temporary.chmod(0o600)
        temporary.write_text(f"{text.rstrip()}\n\n{entry}" if text.strip() else entry, encoding="utf-8")
    return key


def _given_key(headers: Mapping[str, str]) -> str:
    """The key of a request: a bearer token, or the password of Basic authentication."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return ""


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
