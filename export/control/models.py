"""What each kind of control bundle is made of: its graphs, and what PyTorch computes for random inputs of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Exported = dict[str, tuple[ir.Model, Mapping[str, Sequence[int | str]]]]


class Model(Protocol):
    """A ControlNet or an adapter that is exported."""

    @property
    def facts(self) -> dict[str, Any]:
        """Fields of the manifest."""

    def graphs(self, opset: int) -> Exported:
        """Name -> graph, and the shapes of its tensors whose sizes the exporter would name."""

    def references(self, random: np.random.Generator) -> list[tuple[Arrays, Arrays]]:
        """Random inputs at two sizes, see `replayed`, and what PyTorch gives for them.

        In float32, with weights rounded to the bundle's precision, by a fresh module: nothing that was changed for the
        export is trusted.
        """
