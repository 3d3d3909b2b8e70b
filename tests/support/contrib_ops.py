"""ONNX Runtime's own operators in NumPy and float64, as its documentation defines them (ContribOperators.md).

For `onnx.reference.ReferenceEvaluator(model, new_ops=CONTRIB_OPS)`. Results are rounded to the dtype of the first input
once, at the end.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array = NDArray[Any]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _wide(*arrays: Array | None) -> list[Array]:
    return [np.zeros(1) if array is None else array.astype(np.float64) for array in arrays]


def _group_norm(x: Array, gamma: Array, beta: Array, epsilon: float, groups: int, silu: bool) -> Array:
    n, h, w, c = x.shape
    grouped = x.reshape(n, h * w, groups, c // groups)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    y: Array = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta
    return y / (1 + np.exp(-y)) if silu else y


class GroupNorm(OpRun):  # type: ignore[misc]
    """On (n, h, w, c)."""

    op_domain = "com.microsoft"

    def _run(
        self, x: Any, gamma: Any, beta: Any, *, activation: int, channels_last: int, epsilon: float, groups: int
    ) -> tuple[Array]:
        assert channels_last == 1
        assert gamma.dtype == beta.dtype == np.float32
        y = _group_norm(*_wide(x, gamma, beta), epsilon, groups, bool(activation))
        return (y.astype(x.dtype),)


class SkipGroupNorm(OpRun):  # type: ignore[misc]
    """On x (n, h, w, c) and skip (n, h, w, c), (n, 1, 1, c) or (n, c); also the sum that is normalized."""

    op_domain = "com.microsoft"

    def _run(
        self,
        x: Any,
        gamma: Any,
        beta: Any,
        skip: Any,
        bias: Any = None,
        *,
        activation: int,
        channels_last: int,
        epsilon: float,
        groups: int,
    ) -> tuple[Array, ...]:
        assert channels_last == 1
        assert gamma.dtype == beta.dtype == np.float32
        n, _, _, c = x.shape
        assert skip.shape in (x.shape, (n, 1, 1, c), (n, c))
        wide, added, offset, gamma, beta = _wide(x, skip, bias, gamma, beta)
        total = wide + offset + (added.reshape(n, 1, 1, c) if added.size == n * c else added)
        y = _group_norm(total, gamma, beta, epsilon, groups, bool(activation))
        return (y.astype(x.dtype), total.astype(x.dtype))[: len(self.onnx_node.output)]


class BiasSplitGelu(OpRun):  # type: ignore[misc]
    """On x (n, l, 2 c) and bias (2 c): the left half times GELU of the right."""

    op_domain = "com.microsoft"

    def _run(self, x: Any, bias: Any) -> tuple[Array]:
        assert x.ndim == 3
        assert bias.shape == x.shape[2:]
        left, right = np.split(np.add(*_wide(x, bias)), 2, axis=-1)
        return ((left * right * 0.5 * (1 + _erf(right / math.sqrt(2)))).astype(x.dtype),)


class BiasAdd(OpRun):  # type: ignore[misc]
    """On x (n, l, c), bias (c) and skip (n, l, c)."""

    op_domain = "com.microsoft"

    def _run(self, x: Any, bias: Any, skip: Any) -> tuple[Array]:
        assert x.shape == skip.shape
        assert bias.shape == x.shape[2:]
        return (sum(_wide(x, bias, skip)).astype(x.dtype),)  # type: ignore[union-attr]


class SkipLayerNormalization(OpRun):  # type: ignore[misc]
    """On x and skip (n, l, c), with an optional bias (c); the fourth output is the sum that is normalized."""

    op_domain = "com.microsoft"

    def _run(
        self, x: Any, skip: Any, gamma: Any, beta: Any, bias: Any = None, *, epsilon: float
    ) -> tuple[Array | None, ...]:
        assert x.shape == skip.shape
        wide, added, scale, shift, offset = _wide(x, skip, gamma, beta, bias)
        total = wide + offset + added
        mean, variance = total.mean(-1, keepdims=True), total.var(-1, keepdims=True)
        y = (total - mean) / np.sqrt(variance + epsilon) * scale + shift
        unused = np.zeros(0, np.float32)  # means and deviations
        return (y.astype(x.dtype), unused, unused, total.astype(x.dtype))[: len(self.onnx_node.output)]


class MultiHeadAttention(OpRun):  # type: ignore[misc]
    """On rows (n, l, heads · d), or on packed queries, keys and values (n, l, heads, 3, d), without bias or mask."""

    op_domain = "com.microsoft"

    def _run(
        self, query: Any, key: Any = None, value: Any = None, *, num_heads: int, scale: float | None = None
    ) -> tuple[Array]:
        if key is None:
            q, k, v = (query.astype(np.float64)[:, :, :, i] for i in range(3))
        else:
            q, k, v = (a.reshape(*a.shape[:2], num_heads, -1) for a in _wide(query, key, value))
        assert q.shape[2] == num_heads
        scores = np.einsum("nihd,njhd->nhij", q, k) * (scale or q.shape[-1] ** -0.5)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("nhij,njhd->nihd", weights / weights.sum(-1, keepdims=True), v)
        return (mixed.reshape(*mixed.shape[:2], -1).astype(query.dtype),)


CONTRIB_OPS = [GroupNorm, SkipGroupNorm, BiasSplitGelu, BiasAdd, SkipLayerNormalization, MultiHeadAttention]
