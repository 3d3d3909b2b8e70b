"""The formulas of LoRA and its relatives: tensors of one module -> the change of its weight. Knows no names, no files.

Every shape is checked before anything is multiplied: the product of two small tensors can be larger than memory.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32

Parts = Mapping[str, NDArray[Any]]


class MisfitError(ValueError):
    """Tensors that agree with each other, but not with the weight that they are to change."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """alpha / rank, or with rank-stabilized LoRA (arXiv:2312.03732) alpha / sqrt(rank); 1 without an alpha.

    Attributes:
        rank: the rank that PEFT's settings give, for methods whose tensors do not show it.
    """

    alpha: float | None = None
    stabilized: bool = False
    rank: int | None = None

    def of(self, rank: int) -> np.float32:
        """The factor of a change of this rank."""
        if self.alpha is None:
            return np.float32(1)
        return np.float32(self.alpha / (math.sqrt(rank) if self.stabilized else rank))


@dataclass(frozen=True, slots=True)
class Method:
    """One way to change a weight.

    Attributes:
        needs: parts that must be there.
        takes: parts that may be there.
        change: the change for a base weight.
    """

    name: str
    needs: frozenset[str]
    takes: frozenset[str]
    change: Callable[[Parts, Float32, Scaling], Float32]


def methods_of(parts: Mapping[str, object]) -> list[Method]:
    """The methods that a module's tensors belong to. Raises `ValueError` if tensors are missing or left over."""
    found = [method for method in METHODS if any(part in method.needs | method.takes for part in parts)]
    for method in found:
        if missing := sorted(method.needs - set(parts)):
            raise ValueError(f"{method.name} without {', '.join(missing)}")
    names = [method.name for method in found]
    if not found:
        raise ValueError(f"only {', '.join(parts)}")
    if len({*names} - {"diff", "value", "sparse"}) > 1:
        raise ValueError(f"{' and '.join(names)} of one weight")
    if {"dora_scale", "magnitude"} & set(parts) and not {"LoRA", "LoHa", "LoKr"} & {*names}:
        raise ValueError(f"DoRA of {' and '.join(names)}")
    return found


def weight_change(parts: Parts, base: Float32, scaling: Scaling) -> Float32:
    """The change of a weight by one file. Raises `ValueError` for tensors that contradict each other or the weight."""
    change = np.zeros(base.shape, np.float32)
    for method in methods_of(parts):
        change += method.change(parts, base, scaling)
    if "dora_scale" in parts or "magnitude" in parts:
        return _decomposed(parts, base, base + change) - base
    return change


def _decomposed(parts: Parts, base: Float32, changed: Float32) -> Float32:
    """DoRA (arXiv:2402.09353): the direction of the changed weight, with a trained length.

    PEFT and LyCORIS measure lengths of rows, for each output; LyCORIS before version 3.1 and OneTrainer those of
    columns, for each input, which shows in the shape (1, inputs).
    """
    lengths = parts.get("magnitude", parts.get("dora_scale"))
    assert lengths is not None
    outputs, inputs = base.shape[0], base.shape[1] if base.ndim > 1 else 1
    by_input = "magnitude" not in parts and lengths.ndim > 1 and lengths.shape[0] == 1 != outputs
    axis, count = (1, inputs) if by_input else (0, outputs)
    if lengths.size != count or base.ndim < 2:
        raise MisfitError(f"the lengths of DoRA have shape {lengths.shape}")
    view = [1] * base.ndim
    view[axis] = count
    others = tuple(i for i in range(base.ndim) if i != axis)
    norms = np.sqrt(np.sum(np.square(changed), axis=others, keepdims=True)) + np.finfo(np.float32).eps
    result: Float32 = changed * (lengths.reshape(view) / norms)
    return result


def _matrix(name: str, tensor: NDArray[Any], columns: int | None = None) -> Float32:
    """A tensor as a matrix of its first dimension and all others."""
    if tensor.ndim < 2 or not tensor.size or tensor.dtype != np.float32:
        raise ValueError(f"{name} has shape {tensor.shape} and dtype {tensor.dtype}")
    matrix = tensor.reshape(len(tensor), -1)
    if columns is not None and matrix.shape[1] != columns:
        raise ValueError(f"{name} has shape {tensor.shape}, but the rank is {columns}")
    return matrix


def _product(names: tuple[str, str], left: NDArray[Any], right: NDArray[Any], shape: tuple[int, ...]) -> Float32:
    """left @ right, of this shape."""
    b = _matrix(names[1], right)
    a = _matrix(names[0], left, len(b))
    if a.shape[0] != shape[0] or b.shape[1] != math.prod(shape[1:]):
        raise MisfitError(f"{names[0]} and {names[1]} have shapes {left.shape} and {right.shape}")
    return (a @ b).reshape(shape)


def _tucker(core: NDArray[Any], left: NDArray[Any], right: NDArray[Any], shape: tuple[int, ...]) -> Float32:
    """core (r, s, height, width) with left (r, outputs) and right (s, inputs)."""
    a, b = _matrix("the left factor", left), _matrix("the right factor", right)
    if core.dtype != np.float32 or core.ndim != len(shape) or core.shape[:2] != (len(a), len(b)):
        raise ValueError(f"the core has shape {core.shape}, but the ranks are {len(a)} and {len(b)}")
    if (a.shape[1], b.shape[1], *core.shape[2:]) != shape:
        raise MisfitError(f"core and factors have shapes {core.shape}, {left.shape} and {right.shape}")
    result: Float32 = np.einsum("rs...,ro,si->oi...", core, a, b, optimize=True)
    return result


def _lora(parts: Parts, base: Float32, scaling: Scaling) -> Float32:
    """LoRA (arXiv:2106.09685): up @ down, with `mid` in between for convolutions in three factors."""
    up, down = parts["up"], parts["down"]
    if "mid" not in parts:
        change = _product(("up", "down"), up, down, base.shape)
    else:
        change = _tucker(parts["mid"], _matrix("up", up).T, down, base.shape)
    return change * scaling.of(len(down))


def _embedding(parts: Parts, base: Float32, scaling: Scaling) -> Float32:
    """PEFT's LoRA of an embedding: down (r, words), up (width, r)."""
    up, down = parts["embedding_up"], parts["embedding_down"]
    if base.ndim != 2:
        raise MisfitError("it is no embedding")
    return _product(("up", "down"), up, down, base.shape[::-1]).T * scaling.of(len(down))


def _loha(parts: Parts, base: Float32, scaling: Scaling) -> Float32:
    """LoHa (arXiv:2108.06098): the elementwise product of two changes of low rank."""
    halves = []
    for n in (1, 2):
        a, b, name = parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"], f"hada_w{n}"
        core = parts.get(f"hada_t{n}")
        if (core is None) != ("hada_t1" not in parts):
            raise ValueError("hada_t1 or hada_t2 is missing")
        halves.append(
            _product((f"{name}_a", f"{name}_b"), a, b, base.shape) if core is None else _tucker(core, a, b, base.shape)
        )
    return halves[0] * halves[1] * scaling.of(len(parts["hada_w1_b"]))


def _lokr(parts: Parts, base: Float32, scaling: Scaling) -> Float32:
    """LoKr (arXiv:2212.10650): the Kronecker product of two matrices, each whole or of low rank."""
    sizes = [_lokr_size(parts, n) for n in (1, 2)]
    (a, c), (b, d) = sizes
    kernel, columns = base.shape[2:], math.prod(base.shape[1:])
    tucker = "lokr_t2" in parts and "lokr_w2" not in parts
    if base.ndim < 2 or a * b != base.shape[0] or c * d != (base.shape[1] if tucker else columns):
        raise MisfitError(f"lokr_w1 and lokr_w2 are {a} x {c} and {b} x {d}")
    if not tucker:
        d //= math.prod(kernel)
    first, second = (a, c), (b, d, *kernel)
    w1 = parts["lokr_w1"] if "lokr_w1" in parts else _factors(parts, 1, first)
    if tucker:
        w2 = _tucker(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"], second)
    else:
        w2 = parts["lokr_w2"] if "lokr_w2" in parts else _factors(parts, 2, second)
    if w1.dtype != np.float32 or w2.dtype != np.float32:
        raise ValueError(f"lokr_w1 and lokr_w2 have dtypes {w1.dtype} and {w2.dtype}")
    ranks = {len(parts[f"lokr_w{n}_b"]) for n in (1, 2) if f"lokr_w{n}_b" in parts}
    if len(ranks) > 1:
        raise ValueError(f"lokr_w1 and lokr_w2 have ranks {ranks}")
    rank = ranks.pop() if ranks else scaling.rank  # LyCORIS ignores alpha where no factor has a rank, PEFT does not
    product: Float32 = np.kron(w1.reshape(first + (1,) * len(kernel)), w2.reshape(second))
    return product * (np.float32(1) if rank is None else scaling.of(rank))


def _lokr_size(parts: Parts, n: int) -> tuple[int, int]:
    """Rows and columns of one side of a Kronecker product."""
    name, core = f"lokr_w{n}", "lokr_t2" in parts and n == 2
    if name in parts:
        return _matrix(name, parts[name]).shape
    if f"{name}_a" not in parts or f"{name}_b" not in parts:
        raise ValueError(f"LoKr without {name}")
    b = _matrix(f"{name}_b", parts[f"{name}_b"])
    a = _matrix(f"{name}_a", parts[f"{name}_a"], None if core else len(b))
    return (a.shape[1] if core else a.shape[0]), b.shape[1]


def _factors(parts: Parts, n: int, shape: tuple[int, ...]) -> Float32:
    names = (f"lokr_w{n}_a", f"lokr_w{n}_b")
    return _product(names, parts[names[0]], parts[names[1]], shape)


def _glora(parts: Parts, base: Float32, scaling: Scaling) -> Float32:
    """GLoRA (arXiv:2306.07967), as LyCORIS writes it: W @ (a1 @ a2) + b1 @ b2."""
    a1, a2, b1, b2 = (parts[f"glora_{part}"] for part in ("a1", "a2", "b1", "b2"))
    inputs = base.shape[1] if base.ndim > 1 else 0
    own = _product(("b1", "b2"), b1, b2, base.shape)
    on_base = _product(("a1", "a2"), a1, a2, (inputs, inputs))
    product: Float32 = np.einsum("oi...,ij->oj...", base, on_base, optimize=True)
    return (own + product) * scaling.of(len(b2))


def _ia3(parts: Parts, base: Float32, scaling: Scaling) -> Float32:
    """(IA)^3 (arXiv:2205.05638), as LyCORIS writes it: a factor for each input or output, added to 1."""
    del scaling  # it has no rank
    factors, on_input = parts["ia3"], parts["on_input"]
    axis = 1 if on_input.size == 1 and on_input.item() else 0
    if base.ndim < 2 or factors.size != base.shape[axis] or on_input.size != 1:
        raise MisfitError(f"the factors have shape {factors.shape}")
    view = [1] * base.ndim
    view[axis] = factors.size
    result: Float32 = base * factors.reshape(view).astype(np.float32)
    return result


def _diff(parts: Parts, base: Float32, scaling: Scaling) -> Float32:
    """A change that is stored whole."""
    del scaling
    return _whole("the change", parts["diff"], base)


def _value(parts: Parts, base: Float32, scaling: Scaling) -> Float32:
    """A new weight in place of the old one."""
    del scaling
    return _whole("the new weight", parts["value"], base) - base


def _sparse(parts: Parts, base: Float32, scaling: Scaling) -> Float32:
    """What LyCORIS' extraction adds to a change of low rank: single elements of the weight as a matrix."""
    del scaling
    at, values = parts["sparse_indices"], parts["sparse_values"]
    matrix = np.zeros((len(base), base.size // len(base)), np.float32)
    if at.dtype != np.int64 or at.shape != (2, values.size) or values.ndim != 1:
        raise ValueError(f"bias_indices and bias_values have shapes {at.shape} and {values.shape}")
    if at.size and (at.min() < 0 or at[0].max() >= matrix.shape[0] or at[1].max() >= matrix.shape[1]):
        raise MisfitError(f"bias_indices reach to {at.max(axis=1).tolist()}")
    np.add.at(matrix, (at[0], at[1]), values)
    return matrix.reshape(base.shape)


def _whole(what: str, tensor: NDArray[Any], base: Float32) -> Float32:
    squeezed = [n for n in base.shape if n != 1]
    if [n for n in tensor.shape if n != 1] != squeezed or tensor.dtype != np.float32:
        raise MisfitError(f"{what} has shape {tensor.shape} and dtype {tensor.dtype}")
    return tensor.reshape(base.shape)


def _method(name: str, needs: str, takes: str, change: Callable[[Parts, Float32, Scaling], Float32]) -> Method:
    return Method(name, frozenset(needs.split()), frozenset(takes.split()), change)


_LOKR = "lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2"
_LOHA = "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"
METHODS = (
    _method("LoRA", "up down", "mid", _lora),
    _method("LoRA of an embedding", "embedding_up embedding_down", "", _embedding),
    _method("LoHa", _LOHA, "hada_t1 hada_t2", _loha),
    _method("LoKr", "", _LOKR, _lokr),
    _method("GLoRA", "glora_a1 glora_a2 glora_b1 glora_b2", "", _glora),
    _method("(IA)^3", "ia3 on_input", "", _ia3),
    _method("diff", "diff", "", _diff),
    _method("value", "value", "", _value),
    _method("sparse", "sparse_indices sparse_values", "sparse_size", _sparse),
)
