"""Types of arrays that all rooms share, and one table of the dtypes in a bundle.

numpy has no bfloat16: its 16 bits are the upper half of a float32's, and are kept as uint16.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
# Graph -> initializer -> its new values, in the dtype that it is stored in (bfloat16 as uint16).
NewWeights = Mapping[str, Mapping[str, NDArray[Any]]]
# Runs a graph by name on inputs by name; returns all outputs by name.
RunGraph = Callable[[str, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
NO_INPUTS: Mapping[str, Float32] = MappingProxyType({})

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1}
