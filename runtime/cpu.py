"""Which instructions this CPU has for the arithmetic of graphs. Facts only: knows nothing of who uses them."""

import functools
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Names of Linux; the second row is of ARM.
INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve"),
)
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


def cpu_instructions() -> tuple[str, ...]:
    """The instructions of `INSTRUCTIONS` that this CPU has, in that order.

    Empty where nothing is known: on a CPU without any of them, and on systems other than Linux.
    """
    return _instructions(CPUINFO)


def has_bf16() -> bool:
    """Whether products of bfloat16 have instructions of their own; False where nothing is known."""
    return not _BF16.isdisjoint(cpu_instructions())


def has_int8() -> bool:
    """Whether dot products of int8 have instructions of their own; False where nothing is known."""
    return not _INT8.isdisjoint(cpu_instructions())


def int8_overflows() -> bool:
    """Whether the kernels of libraries for this CPU add int8 products in 16 bits, where sums may overflow.

    So it is on x86 with AVX2 or AVX-512 and no VNNI; False where nothing is known.
    """
    return "avx2" in cpu_instructions() and not has_int8()


@functools.cache
def _instructions(cpuinfo: Path) -> tuple[str, ...]:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found = re.search(r"^(?:flags|Features)\s*: (.*)", text, re.MULTILINE)
    flags = found[1].split() if found else []
    return tuple(name for name in INSTRUCTIONS if name in flags)
