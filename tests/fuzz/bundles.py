"""Altered bundles: the small model that ships along, with something in it changed. A case is its seed alone."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentrt.runtime import Bundle, Pipeline
from latentrt.runtime.goldens import verify_goldens
from latentrt.runtime.goldens.pipeline import _golden_arrays
from latentrt.runtime.pipeline import embedded_bundle

LIMITS = {"MAX_PIXELS": "65536", "MAX_IMAGES": "16", "MAX_STEPS": "100"}
VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        1,
        -1,
        2,
        3,
        7,
        64,
        2**31,
        2**63,
        10**30,
        10**400,
        0.5,
        -0.5,
        1e30,
        "",
        "x",
        "../x",
        "/etc/passwd",
    ),
    *(
        "tokenizer/../../x.json",
        "denoise.onnx",
        "B*h",
        "float16",
        "int64",
        [],
        [1],
        ["B", 4],
        {},
        {"a": 1},
        "a" * 5000,
        "\0",
    ),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all entries of a JSON document, at most 20 of each list or large object."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    result = [path] if path else []
    for key, entry in list(entries)[:20]:
        result += places(entry, (*path, key))
    return result


def altered_json(rng: random.Random, document: Any) -> Any:
    """Some entries replaced, removed, swapped or added."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        top = rng.choice(sorted(document)) if isinstance(document, dict) and document else None
        inside = [place for place in places(document) if top is None or place[0] == top]
        place = rng.choice(inside or [("x",)])
        holder = document
        for key in place[:-1]:
            holder = holder[key]
        what = rng.random()
        if what < 0.6:
            holder[place[-1]] = rng.choice(VALUES)
        elif what < 0.8 and isinstance(holder, dict):
            holder.pop(place[-1], None)
        elif isinstance(holder, dict):
            holder[rng.choice(["x", "files", "y" * 500])] = rng.choice(VALUES)
        elif isinstance(holder, list):
            holder *= rng.choice([0, 2])
    return document


def altered_text(rng: random.Random, text: str) -> bytes:
    """JSON that is no JSON, or is absurd."""
    return rng.choice(
        [
            *(
                b"",
                b"\xff\xfe",
                b"[" * 100_000,
                b"null",
                b"[]",
                b"5",
                text.encode("utf-16"),
                text[: rng.randrange(len(text))].encode(),
            ),
            *((text[:-3] + ', "format": 1}').encode(), text.replace(":", ": 1e999999,", 1).encode(), b"1" * 6000),
        ]
    )


def altered_bytes(rng: random.Random, data: bytes) -> bytes:
    """Some bytes replaced, mostly at the beginning; cut or longer."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 4, 30])):
        at = rng.randrange(min(len(data), rng.choice([8, 200, 2000, len(data)])))
        changed[at] = rng.randrange(256)
    end = rng.choice([None, None, None, rng.randrange(len(data)), 0])
    return bytes(changed[:end]) + rng.choice([b"", b"", b"", rng.randbytes(50)])


def replace(rng: random.Random, file: Path) -> None:
    """Something else in the place of a file."""
    file.unlink()
    what = rng.choice(["folder", "loop", "pipe", "zero", "missing", "outside", "unreadable"])
    if what == "folder":
        file.mkdir()
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "unreadable":
        file.write_text("x")
        file.chmod(0)
    elif what != "missing":
        file.symlink_to({"loop": file, "zero": Path("/dev/zero"), "outside": Path("/etc/passwd")}[what])


def alter(rng: random.Random, bundle: Path) -> str:
    """Change a bundle, mostly with the hashes of the changed file in the manifest; returns the file's name."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    onnx = [f"{name}.onnx" for name in manifest["graphs"]]
    data = [f"{name}.data" for name in onnx if f"{name}.data" in manifest["files"]]
    often = [*["bundle.json"] * 8, *[manifest["scheduler"]] * 4, *[manifest["golden"]["file"]] * 4]
    name = rng.choice([*often, *["tokenizer/tokenizer.json"] * 2, *rng.sample(onnx, 2), rng.choice(data)])
    file = bundle / name
    content = file.read_bytes()
    if rng.random() < 0.1:
        replace(rng, file)
        return name
    file.unlink()  # it may be a link to the original
    if name == manifest["golden"]["file"] and rng.random() < 0.5:
        size = int.from_bytes(content[:8], "little")
        header = json.dumps(altered_json(rng, json.loads(content[8 : 8 + size])), default=str).encode()
        changed = len(header).to_bytes(8, "little") + header + content[8 + size :]
    elif name.endswith(".json") and rng.random() < 0.8:
        changed = json.dumps(altered_json(rng, json.loads(content))).encode()
    elif name.endswith(".json"):
        changed = altered_text(rng, content.decode())
    else:
        changed = altered_bytes(rng, content)
    file.write_bytes(changed)
    if name != "bundle.json" and rng.random() < 0.85:
        manifest["files"][name] = {"size": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}
        (bundle / "bundle.json").unlink()
        (bundle / "bundle.json").write_text(json.dumps(manifest))
    return name


def make_files(folder: Path) -> None:
    """The worker's place for copies."""
    os.chdir(folder)


def check(copy: Path, name: str, *, whole: bool) -> None:
    """Open a bundle and read what was altered in it; `whole` also draws and verifies, which takes a second or two."""
    bundle = Bundle.open(copy)
    bundle.altered_files(only=None if whole else {name})
    with Pipeline.load(copy, device="cpu", backend="onnxruntime") as pipe:
        pipe.stream("a star", height=64, width=64)
        if name.endswith(("tokenizer.json", "bundle.json")):
            pipe.tokenizer.encode(["a star, on (blue)"])
        if name.startswith("golden") and not whole and bundle.manifest.golden is not None:
            _golden_arrays(bundle, bundle.manifest.golden)
        for graph, spec in bundle.manifest.graphs.items():
            if name in (spec.file, f"{spec.file}.data"):
                pipe._backend.engine(graph)
                whole = True
        if whole:
            pipe("a star", num_inference_steps=1, height=64, width=64)
            verify_goldens(pipe)


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(Path(source).resolve())


def runner() -> Callable[[int], None]:
    """Opens one altered bundle, and goes on as far as it goes."""
    original = embedded_bundle()

    def run(seed: int) -> None:
        rng, copy = random.Random(seed), Path(f"bundle-{seed}")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy, copy_function=_link)
        try:
            check(copy, alter(rng, copy), whole=rng.random() < 0.08)
        finally:
            for path in copy.rglob("*"):
                if not path.is_symlink() and path.is_file():
                    path.chmod(0o600)
            shutil.rmtree(copy, ignore_errors=True)

    return run
