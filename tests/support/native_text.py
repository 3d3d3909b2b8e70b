"""The library's tokenizer and prompt syntax, many texts in a call, beside Python's."""

import ctypes
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from ctypes import byref, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import TextEncoder
from latentrt.runtime.text import Tokenizer
from latentrt.runtime.text.tokenizer import Chunks

from .exports import SHAPES
from .native import OK, NativeError, probe

SYNTAXES = ["plain", "web-ui"]
CLIP = SHAPES.bundle / "tokenizer" / "tokenizer.json"
FACTS = {"max_length": 77, "bos": 49406, "eos": 49407, "pad": 49407}

Located = tuple[NDArray[np.int64], NDArray[np.int64]]


class Reader:
    """What a function of the probe returned."""

    def __init__(self, name: str, texts: Sequence[str | bytes], *arguments: Any) -> None:
        blocks = [text.encode() if isinstance(text, str) else text for text in texts]
        data = b"".join(struct.pack("<I", len(block)) + block for block in blocks)
        function, size = getattr(probe(), name), c_size_t()
        function.restype = c_void_p
        address = function(*arguments, data, c_size_t(len(data)), byref(size))
        self._bytes, self._at = ctypes.string_at(address, size.value), 0
        probe().probe_text_free(c_void_p(address))

    def size(self) -> int:
        """An unsigned number."""
        return int(self.array(1, np.uint32)[0])

    def array(self, count: int, dtype: Any) -> NDArray[Any]:
        """Values."""
        found = np.frombuffer(self._bytes, dtype, count, self._at)
        self._at += found.nbytes
        return found

    def text(self) -> str:
        """A text behind its length."""
        return bytes(self.array(self.size(), np.uint8)).decode()

    def checked(self) -> "Reader":
        """Raise what was thrown for the next text, if anything was."""
        if status := self.size():
            raise NativeError(status, self.text())
        return self

    def ended(self) -> bool:
        """Whether all was read."""
        return self._at == len(self._bytes)


class NativeTokenizer:
    """lrt::Tokenizer."""

    def __init__(self, content: bytes, facts: Mapping[str, int], embeddings: Sequence[Sequence[int]] = ()) -> None:
        numbers = np.array([facts[name] for name in ("max_length", "bos", "eos", "pad")], np.int64)
        flat = np.array([value for ids in embeddings for value in (len(ids), *ids)], np.int64)
        status, error = c_int(), ctypes.create_string_buffer(1000)
        make = probe().probe_tokenizer
        make.restype = c_void_p
        pointers = [c_void_p(array.ctypes.data) for array in (numbers, flat)]
        made = make(content, c_size_t(len(content)), *pointers, c_size_t(flat.size), byref(status), error)
        if status.value != OK:
            raise NativeError(status.value, error.value.decode(errors="replace"))
        self.handle = c_void_p(made)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            probe().probe_tokenizer_free(self.handle)

    def located(self, texts: Sequence[str | bytes]) -> Iterator[Located]:
        """Ids of each text, and the bytes where their pieces begin."""
        reader = Reader("probe_located", texts, self.handle)
        for _ in texts:
            count = reader.checked().size()
            yield reader.array(count, np.int64), reader.array(count, np.int64)
        assert reader.ended()

    def chunks(self, prompts: Sequence[str], *, syntax: str, split: bool) -> Iterator[Chunks]:
        """Chunks of each prompt."""
        reader = Reader("probe_chunks", prompts, self.handle, c_int(SYNTAXES.index(syntax)), c_int(split))
        for _ in prompts:
            reader.checked()
            shape = reader.size(), reader.size()
            ids = reader.array(shape[0] * shape[1], np.int64).reshape(shape)
            weights = reader.array(ids.size, np.float32).reshape(shape)
            yield Chunks(ids, weights, reader.size(), reader.text())
        assert reader.ended()


def parsed(prompts: Sequence[str | bytes], syntax: str) -> Iterator[tuple[Any, list[str]] | NativeError]:
    """Sections of each prompt, as texts and weights, and warnings; or the error."""
    reader = Reader("probe_parse", prompts, c_int(SYNTAXES.index(syntax)))
    for _ in prompts:
        try:
            reader.checked()
        except NativeError as error:
            yield error
            continue
        warnings = [reader.text() for _ in range(reader.size())]
        sections = []
        for _ in range(reader.size()):
            sections.append([(reader.text(), float(reader.array(1, np.float64)[0])) for _ in range(reader.size())])
        yield sections, warnings
    assert reader.ended()


@dataclass(frozen=True)
class Pair:
    """A tokenizer in Python and in C++."""

    python: Tokenizer
    native: NativeTokenizer

    @classmethod
    def of(cls, file: Path, facts: Mapping[str, int] = FACTS, embeddings: Mapping[str, Any] | None = None) -> "Pair":
        words = {word: tuple(ids) for word, ids in (embeddings or {}).items()}
        encoder = TextEncoder(
            graph="text_encoder",
            tokenizer="tokenizer/tokenizer.json",
            **facts,
            hidden_size=64,
            hidden_states=2,
            pooled=False,
            embeddings=words,
        )
        native = NativeTokenizer(file.read_bytes(), facts, list(words.values()))
        return cls(Tokenizer.from_file(file, encoder), native)

    def different(self, texts: Sequence[str]) -> list[tuple[str, Any, Any]]:
        """Texts whose ids or places differ, with Python's and the library's."""
        found = []
        for text, (ids, places) in zip(texts, self.native.located(texts), strict=True):
            located = self.python._located(text)
            expected = np.array(located, np.int64).reshape(-1, 2)
            at = _places(text)
            if not np.array_equal(ids, expected[:, 0]) or not np.array_equal(places, at[expected[:, 1]]):
                found.append((text, located, list(zip(ids.tolist(), places.tolist(), strict=True))))
        return found


def _places(text: str) -> NDArray[np.int64]:
    """The bytes in UTF-8 where characters begin, and the end."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + np.add.reduce([codes >= least for least in (0x80, 0x800, 0x10000)], dtype=np.int64)
    return np.concatenate([[0], np.cumsum(sizes)])


def with_model(content: dict[str, Any], **changes: Any) -> bytes:
    """A tokenizer.json with other keys in its model."""
    return json.dumps(content | {"model": content["model"] | changes}).encode()


__all__ = ["CLIP", "FACTS", "NativeTokenizer", "Pair", "Reader", "c_size_t", "parsed", "with_model"]
