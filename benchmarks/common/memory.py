"""Peak memory of this process. Standard library only, so that every environment can import it."""

import re
from pathlib import Path


def peak_bytes() -> int:
    """The largest resident size of this process so far, mapped files included; 0 where there is no /proc.

    Not `ru_maxrss`, which starts at the size of the process that forked this one.
    """
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    return 1024 * int(match[1]) if match else 0
