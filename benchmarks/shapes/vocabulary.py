"""Write CLIP's byte pair vocabulary as a Hugging Face tokenizer folder.

    pip install --no-deps open-clip-torch
    python -m benchmarks.shapes.vocabulary tests/data/shapes/tokenizer

The merges are a data file in the wheel `open-clip-torch` (MIT license). The package is not imported, so it needs none
of its dependencies. The ids are those of every CLIP text encoder: 256 bytes, 256 bytes that end a word, 48,894 merges,
the start and the end of text.
"""

from __future__ import annotations

import argparse
import gzip
import json
from importlib.metadata import distribution
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49_152 - 256 - 2
LENGTH = 77


def byte_letters() -> list[str]:
    """A printable character for each byte, printable bytes first, in the order of GPT-2 and CLIP."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len(set(range(256)) - set(printable))
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(others)]


def merges_from_wheel() -> list[str]:
    """The merges of CLIP, from the installed wheel."""
    path = Path(str(distribution("open-clip-torch").locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")))
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : MERGES + 1]  # the first line is a version; the file has more merges than CLIP uses


def write_tokenizer(folder: Path) -> None:
    """Write the vocabulary, the merges and the configs."""
    letters, merges = byte_letters(), merges_from_wheel()
    merged = (merge.replace(" ", "") for merge in merges)
    words = [*letters, *(letter + "</w>" for letter in letters), *merged, START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps({word: index for index, word in enumerate(words)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges)) + "\n", encoding="utf-8")
    special = {
        name: {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, content in (("bos_token", START), ("eos_token", END), ("unk_token", END))
    }
    settings = {
        "add_prefix_space": False,
        **{name: {"__type": "AddedToken", **token} for name, token in special.items()},
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": LENGTH,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
    }
    for name, content in (("special_tokens_map", {**special, "pad_token": END}), ("tokenizer_config", settings)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Write CLIP's vocabulary as a tokenizer folder.")
    parser.add_argument("folder", type=Path)
    write_tokenizer(parser.parse_args().folder)


if __name__ == "__main__":
    main()
