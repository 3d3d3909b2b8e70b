"""The bundle on disk: manifest, files, engines and tensor sizes. Knows nothing about running graphs."""

from .bundle import AnyBundle, Bundle, ControlBundle, hashed_files, open_bundle
from .control_manifest import ControlManifest
from .engine_list import EngineList, types_text
from .manifest import (
    Contents,
    Defaults,
    EngineRecord,
    File,
    Golden,
    Graph,
    Manifest,
    Model,
    TensorSpec,
    TextEncoder,
    Weight,
)
from .sizes import Sizes, shape_at, sizes_of_inputs, sizes_text, takes, takes_score

__all__ = [
    "AnyBundle",
    "Bundle",
    "Contents",
    "ControlBundle",
    "ControlManifest",
    "Defaults",
    "EngineList",
    "EngineRecord",
    "File",
    "Golden",
    "Graph",
    "Manifest",
    "Model",
    "Sizes",
    "TensorSpec",
    "TextEncoder",
    "Weight",
    "hashed_files",
    "open_bundle",
    "shape_at",
    "sizes_of_inputs",
    "sizes_text",
    "takes",
    "takes_score",
    "types_text",
]
