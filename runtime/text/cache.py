"""Keeps what text encoders returned, by token ids: the negative prompt is mostly the same. Knows no texts."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Layers, RunEncoder

BYTES_KEPT = 1 << 28
Row = dict[str, NDArray[Any]]


class EncoderCache:
    """Runs text encoders, each different row of token ids once. Used by one thread at a time."""

    def __init__(self, run: RunEncoder, *, bytes_kept: int = BYTES_KEPT) -> None:
        self._run, self._bytes_kept = run, bytes_kept
        self._rows: OrderedDict[tuple[object, ...], Row] = OrderedDict()
        self._bytes = 0
        self.weights: object = None  # which weights are in; rows of other ones are kept, too
        self.hits = self.misses = 0

    def __call__(self, graph: str, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> Row:
        """See `RunEncoder`; all inputs have a row for each text."""
        count = len(next(iter(inputs.values())))
        chosen = None if layers is None else tuple(layers)
        keys = [(self.weights, graph, chosen, *(array[i].tobytes() for array in inputs.values())) for i in range(count)]
        found = {key: self._rows[key] for key in keys if key in self._rows}
        for key in found:
            self._rows.move_to_end(key)
        missing = [i for i, key in enumerate(keys) if key not in found]
        self.hits, self.misses = self.hits + count - len(missing), self.misses + len(missing)
        if missing:
            outputs = self._run(graph, {name: array[missing] for name, array in inputs.items()}, layers)
            for row, i in enumerate(missing):
                found[keys[i]] = {name: array[row].copy() for name, array in outputs.items()}
                self._keep(keys[i], found[keys[i]])
        return {name: np.stack([found[key][name] for key in keys]) for name in found[keys[0]]}

    def _keep(self, key: tuple[object, ...], row: Row) -> None:
        if key not in self._rows:
            self._rows[key] = row
            self._bytes += _bytes(row)
        while self._bytes > self._bytes_kept:
            self._bytes -= _bytes(self._rows.popitem(last=False)[1])


def _bytes(row: Row) -> int:
    return sum(array.nbytes for array in row.values())
