"""Who may import whom. A room is a folder, or a file at the top of `runtime/`, `export/` or `serve/`."""

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from support.exports import ROOT

# Every room may import these files of the runtime.
SHARED = {
    *("runtime.arrays", "runtime.cpu", "runtime.errors", "runtime.files", "runtime.in_place", "runtime.limits"),
    "runtime.locks",
}
NUMPY = {"numpy"}
PICTURES = {"PIL"}
SAFETENSORS = {"safetensors"}

# Room -> rooms and files of ours that it may import, besides itself and SHARED.
ROOMS: dict[str, set[str]] = {
    "runtime.bundle": set(),
    "runtime.scheduler": set(),
    "runtime.protocols": {"runtime.bundle", "runtime.scheduler"},
    "runtime.weights": {"runtime.bundle"},
    "runtime.gpu": {"runtime.bundle"},
    "runtime.text": {"runtime.bundle"},
    "runtime.latents": {"runtime.bundle", "runtime.scheduler"},
    "runtime.control": {"runtime.bundle"},
    "runtime.request": {
        *("runtime.bundle", "runtime.control", "runtime.scheduler", "runtime.text", "runtime.latents"),
    },
    "runtime.loop": {"runtime.bundle", "runtime.scheduler", "runtime.gpu", "runtime.protocols"},
    "runtime.backends": {"runtime.bundle", "runtime.weights", "runtime.gpu", "runtime.loop", "runtime.protocols"},
    "runtime.cpu_hints": {"runtime.bundle"},
    "runtime.image": set(),
    "runtime.steering": {
        *("runtime.bundle", "runtime.latents", "runtime.protocols", "runtime.request", "runtime.weights"),
    },
    "runtime.stages": {
        "runtime.steering",
        *("runtime.bundle", "runtime.image", "runtime.latents", "runtime.protocols", "runtime.request"),
        *("runtime.text", "runtime.weights"),
    },
    "runtime.drawing": {
        *("runtime.image", "runtime.loop", "runtime.protocols", "runtime.request", "runtime.scheduler"),
        "runtime.stages",
    },
    "runtime.pipeline": {
        *("runtime.backends", "runtime.bundle", "runtime.control", "runtime.cpu_hints", "runtime.drawing"),
        *("runtime.protocols", "runtime.request", "runtime.scheduler", "runtime.stages", "runtime.text", "engines"),
    },
    "runtime.jobs": {"runtime.image", "runtime.pipeline", "runtime.request"},
    "runtime.goldens": {
        *("runtime.bundle", "runtime.control", "runtime.loop", "runtime.pipeline", "runtime.protocols"),
        *("runtime.scheduler", "runtime.text", "runtime.weights"),
    },
    "runtime.cli": {
        *(
            "runtime.backends",
            "runtime.latents",
            "runtime.bundle",
            "runtime.control",
            "runtime.cpu_hints",
            "runtime.drawing",
            "runtime.goldens",
            "runtime.gpu",
            "runtime.image",
            "runtime.jobs",
            "runtime.pipeline",
            "runtime.request",
        ),
        *("runtime.scheduler", "runtime.weights"),
    },
    "runtime": {"runtime.bundle", "runtime.drawing", "runtime.latents", "runtime.pipeline", "runtime.scheduler"},
    # The embedded model has CLIP's tokenizer; the defaults of schedulers' classes decide what pipelines mend.
    "export.checkpoint": {"runtime.bundle", "runtime.scheduler", "runtime.weights", "engines"},
    "export.graphs": {"export.checkpoint", "runtime.bundle", "runtime.scheduler"},
    # It runs what it makes, to calibrate and to judge.
    "export.quantize": {
        *(
            "export.graphs",
            "export.new_bundle",
            "runtime.backends",
            "runtime.bundle",
            "runtime.goldens",
            "runtime.loop",
        ),
        *("runtime.pipeline", "runtime.protocols", "runtime.request", "runtime.scheduler", "runtime.stages"),
        "runtime.weights",
    },
    "export.build": {"runtime.backends", "runtime.bundle", "runtime.gpu"},
    **{
        room: {
            *("export.checkpoint", "export.graphs", "export.write", "export.goldens", "export.latent_rgb"),
            *(
                "export.graph_records",
                "export.new_bundle",
                "export.model_facts",
                "export.producer",
                "runtime.bundle",
                "runtime.latents",
                "runtime.scheduler",
                "runtime.text",
            ),
            "runtime.weights",
        }
        for room in ("export.write", "export.parity", "export.goldens", "export.latent_rgb", "export.model_facts")
    },
    "export.parity_child": {"export.parity"},
    "export.graph_records": {"export.graphs", "runtime.bundle"},
    # ControlNets and adapters, which are exported as a checkpoint is.
    "export.control": {
        *("export.checkpoint", "export.graph_records", "export.graphs", "export.new_bundle", "export.parity"),
        *("export.producer", "runtime.bundle", "runtime.control", "runtime.latents", "runtime.scheduler"),
    },
    "export.cli": {"export.checkpoint", "export.write", "runtime.bundle", "runtime.weights"},
    "export.new_bundle": set(),
    "export.producer": {"runtime.bundle"},
    "export": set(),
    "engines": set(),
    "serve": set(),
    # Ray Data's workers have a pipeline each; they share nothing with the dispatcher.
    "serve.batch": {"runtime.bundle", "runtime.image", "runtime.jobs", "runtime.pipeline", "serve.places"},
    "serve.messages": {"runtime.request"},
    "serve.served_model": {
        *("runtime.bundle", "runtime.protocols", "runtime.request", "runtime.scheduler", "runtime.text"),
        "serve.messages",
    },
    "serve.service": {"serve.messages", "serve.served_model"},
    "serve.metrics": {"serve.messages", "serve.service"},
    "serve.dispatcher": {
        *(
            "runtime",
            "runtime.bundle",
            "runtime.control",
            "runtime.loop",
            "runtime.pipeline",
            "runtime.protocols",
            "runtime.request",
        ),
        *("runtime.scheduler", "runtime.stages", "runtime.text", "serve.messages", "serve.served_model"),
        *("serve.places", "serve.service"),
    },
    "serve.jobs": {
        *("runtime.bundle", "runtime.request", "runtime.scheduler", "serve.messages", "serve.served_model"),
        "serve.service",
    },
    "serve.jobs.postgres": {"serve.jobs", "serve.messages"},
    "serve.stores": {"serve.jobs", "serve.jobs.postgres"},
    "serve.http": {
        *("runtime.latents", "runtime.request", "serve.jobs", "serve.messages", "serve.metrics"),
        *("serve.served_model", "serve.service"),
    },
    "serve.http.webui": {
        *("runtime.bundle", "runtime.latents", "runtime.request", "runtime.scheduler", "serve.http"),
        *("serve.messages", "serve.metrics", "serve.served_model", "serve.service"),
    },
    "serve.logs": set(),
    "serve.places": set(),
    "serve.sockets": set(),
    "serve.settings": {"serve.messages"},
    "serve.worker": {"serve.logs", "serve.messages", "serve.places", "serve.served_model", "serve.service"},
    "serve.server": {"serve.settings", "serve.sockets", "serve.worker"},
    "serve.wiring": {
        *("serve.dispatcher", "serve.http", "serve.http.webui", "serve.jobs", "serve.messages", "serve.metrics"),
        *("serve.served_model", "serve.server", "serve.service", "serve.settings", "serve.stores", "serve.worker"),
    },
    "serve.ray": {
        *("serve.http", "serve.jobs", "serve.messages", "serve.metrics", "serve.served_model", "serve.service"),
        *("serve.settings", "serve.wiring", "serve.worker"),
    },
    "serve.ray_app": {
        *("serve.logs", "serve.messages", "serve.ray", "serve.service", "serve.wiring", "serve.worker"),
    },
    "serve.extra": set(),
    "serve.triton": {
        *("serve.extra", "serve.http", "serve.logs", "serve.messages", "serve.served_model", "serve.service"),
        *("serve.settings", "serve.wiring", "serve.worker"),
    },
    "serve.cli": {
        *("serve.extra", "serve.http", "serve.logs", "serve.metrics", "serve.server", "serve.settings"),
        "serve.wiring",
    },
}
# Room -> libraries that it may import, besides the standard library; imports inside of functions count too.
LIBRARIES: dict[str, set[str]] = {
    "runtime.bundle": NUMPY,
    "runtime.scheduler": NUMPY,
    "runtime.protocols": NUMPY,
    "runtime.control": NUMPY,
    "runtime.weights": NUMPY | SAFETENSORS,
    "runtime.gpu": NUMPY | {"cuda"},
    "runtime.text": NUMPY | {"tokenizers"},
    "runtime.latents": NUMPY | PICTURES,
    "runtime.request": NUMPY | PICTURES,
    "runtime.loop": NUMPY,
    "runtime.backends": NUMPY | {"onnxruntime", "openvino"},
    "runtime.backends.ort": NUMPY | {"onnxruntime"},
    "runtime.backends.trt": NUMPY,  # TensorRT is imported by name, in library.py alone
    "runtime.image": NUMPY | PICTURES,
    "runtime.steering": NUMPY,
    "runtime.stages": NUMPY | PICTURES,
    "runtime.drawing": NUMPY | PICTURES,
    "runtime.pipeline": NUMPY,
    "runtime.goldens": NUMPY | SAFETENSORS,
    "runtime.jobs": PICTURES | {"fsspec", "pyarrow"},
    "runtime.cli": NUMPY | PICTURES | {"tqdm", "matplotlib"},
    "runtime.arrays": NUMPY,
    "serve.batch": PICTURES | {"fsspec", "tqdm"},
    "serve.batch.cluster": {"ray"},
    "serve.dispatcher": NUMPY | PICTURES,
    "serve.jobs": NUMPY | PICTURES,
    "serve.jobs.postgres": {"fsspec", "psycopg"},
    "serve.http": NUMPY | PICTURES | {"fastapi", "starlette", "pydantic"},
    "serve.http.webui": NUMPY | PICTURES | {"cv2", "fastapi", "starlette", "pydantic"},
    "serve.metrics": {"prometheus_client"},
    "serve.wiring": {"fastapi"},
    "serve.ray": {"fastapi", "prometheus_client", "ray"},
    "serve.ray_app": {"ray"},
    "serve.server": {"uvicorn"},
    "serve.sockets": {"h11", "uvicorn"},
    "serve.triton": NUMPY | {"triton_python_backend_utils"},
}
# What a room must not import although the table above lets it see a part of it.
NEVER: dict[str, set[str]] = {
    "export.build": {"torch", "diffusers", "transformers"},
    "export.quantize": {"torch", "diffusers", "transformers"},
    "export.checkpoint": {"onnx", "onnx_ir"},
}


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str, rooms: Iterable[str] = ROOMS) -> str:
    """The longest room that holds a module."""
    return max((room for room in rooms if f"{module}.".startswith(f"{room}.")), key=len, default=module)


def imports(file: Path) -> Iterator[str]:
    """Full names of what a file imports; those of ours begin with runtime, export, engines or serve."""
    package = module_of(file) if file.name == "__init__.py" else module_of(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("latentrt.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{file}: relative imports stay within a folder"
            base = ".".join(filter(None, [package, node.module])) if node.level else str(node.module)
            base = base.removeprefix("latentrt.")
            for alias in node.names:  # a name may be a module of its own
                full = alias.name if base == "latentrt" else f"{base}.{alias.name}"
                path = ROOT / full.replace(".", "/")
                yield full if path.is_dir() or path.with_suffix(".py").is_file() else base


def is_ours(name: str) -> bool:
    return name.split(".")[0] in ("runtime", "export", "engines", "serve")


@pytest.mark.parametrize("file", files("runtime", "export", "serve"), ids=module_of)
def test_imports_follow_the_table(file: Path) -> None:
    room = room_of(module_of(file))
    assert room in ROOMS, f"{file} is in no room: add it to ROOMS"
    for name in filter(is_ours, imports(file)):
        target = room_of(name)
        assert target == room or target in ROOMS[room] or room_of(name, SHARED) in SHARED, (
            f"{module_of(file)} imports {name}, and {room} may not import {target}"
        )


@pytest.mark.parametrize("file", files("runtime", "export", "serve"), ids=module_of)
def test_imports_are_relative_within_a_folder_and_absolute_across(file: Path) -> None:
    folder = module_of(file) if file.name == "__init__.py" else module_of(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            target = str(node.module).removeprefix("latentrt.")
            assert (
                target.rpartition(".")[0] != folder
                or not (ROOT / target.replace(".", "/")).with_suffix(".py").is_file()
            ), f"{module_of(file)}: write `from .{target.rpartition('.')[2]}`"


@pytest.mark.parametrize("file", files("runtime", "serve"), ids=module_of)
def test_libraries_of_the_runtime_stay_in_their_rooms(file: Path) -> None:
    allowed = LIBRARIES.get(room_of(module_of(file), LIBRARIES), set())
    names = {name.split(".")[0] for name in imports(file) if not is_ours(name)}
    assert names - set(sys.stdlib_module_names) - {"latentrt"} <= allowed


@pytest.mark.parametrize("file", files(*(room.replace(".", "/") for room in NEVER)), ids=module_of)
def test_what_a_room_must_not_know(file: Path) -> None:
    forbidden = NEVER[room_of(module_of(file))]
    assert not {name for name in imports(file) if name.split(".")[0] in forbidden}


def test_the_table_has_no_circle() -> None:
    """So data flows one way; `export.write` and its neighbours count as one room."""
    joined = {room: "export.write" for room in ROOMS if "export.goldens" in ROOMS[room]}
    graph = {joined.get(r, r): {joined.get(t, t) for t in ts} - {joined.get(r, r)} for r, ts in ROOMS.items()}
    while leaves := [room for room, targets in graph.items() if not targets]:
        graph = {room: targets - {*leaves} for room, targets in graph.items() if room not in leaves}
    assert not graph


def test_imports_of_every_form_are_found() -> None:
    """The reader finds imports of every form."""
    file = ROOT / "runtime" / "text" / "conditioning.py"
    assert "runtime.bundle" in set(imports(file))
    assert "runtime.text.given_texts" in set(imports(file))
    assert "runtime.pipeline" in set(imports(ROOT / "runtime" / "cli" / "flags.py"))  # inside of a function
    assert room_of("runtime.text.prompt") == "runtime.text"
    assert room_of("runtime.errors") == "runtime"


def test_every_folder_is_a_package_that_is_installed() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        f"latentrt.{module_of(file)}"
        for file in files("runtime", "export", "engines", "serve")
        if file.stem == "__init__"
    }
    assert sorted(config) == config
    assert set(config) == found
    folders = {file.parent for file in files("runtime", "export", "serve")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
