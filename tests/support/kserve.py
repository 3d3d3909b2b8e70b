"""What tests of the Open Inference Protocol share: tensors of Triton's client."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype


def tensor(name: str, values: Sequence[Any] | NDArray[Any], *, binary: bool = True) -> triton.InferInput:
    """An input; texts and bytes become BYTES."""
    given = np.asarray(values)
    array = np.array(values, object) if given.dtype.kind in "US" else given
    result = triton.InferInput(name, [*array.shape], np_to_triton_dtype(array.dtype))
    return result.set_data_from_numpy(array, binary_data=binary)


def wanted(*names: str, binary: bool = True) -> list[triton.InferRequestedOutput]:
    """Outputs."""
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
