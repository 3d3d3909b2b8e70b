"""Plans as tables in which nothing is stored twice: what a plan pack holds. `engines/README.md` specifies it.

Knows nothing of schedulers: a plan goes in, two numbers come out, and at the end the bytes of all tables.
"""

import numpy as np

from latentrt.runtime.errors import SchedulerError

from .plan import Plan

_ZERO, _ONE, _NEXT, _AGAIN = 0, 1, 2, 3
_ONE_BITS = int(np.float32(1).view(np.uint32))
_MOST_PATTERNS = 1 << 16


class Records:
    """Distinct rows of float32. Each is a pattern, which says where zeros, ones and repeated values are, and values."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._patterns: dict[bytes, int] = {}
        self._uses: list[int] = []
        self._values: list[int] = []

    def __len__(self) -> int:
        return len(self._uses)

    def add(self, row: bytes, flag: bytes = b"") -> int:
        """The index of a row; `flag` goes in front of its pattern."""
        known = self._known.get(flag + row)
        if known is None:
            known = self._known[flag + row] = len(self._uses)
            pattern, values = _pattern(np.frombuffer(row, "<u4").tolist())
            self._uses.append(self._patterns.setdefault(flag + pattern, len(self._patterns)))
            self._values += values
        return known

    def sizes(self) -> tuple[int, int, int]:
        """Number of rows, patterns and values."""
        return len(self._uses), len(self._patterns), len(self._values)

    def tables(self) -> tuple[bytes, bytes, bytes]:
        """The rows' patterns as uint16, the patterns, and the values as float32."""
        if len(self._patterns) > _MOST_PATTERNS:
            raise SchedulerError("these schedulers have too many forms of rows for one plan pack: write two")
        return (
            np.array(self._uses, "<u2").tobytes(),
            b"".join(self._patterns),
            np.array(self._values, "<u4").tobytes(),
        )


class Tables:
    """Calls, starts, and chains of calls: each node is a call and the node after it, so that plans share their ends."""

    def __init__(self) -> None:
        self._calls, self._starts = Records(), Records()
        self._nodes: dict[tuple[int, int], int] = {}
        self._plans: list[tuple[int, int]] = []

    def add(self, plan: Plan | None) -> None:
        """Append a plan, or the mark that there is none."""
        if plan is None:
            self._plans.append((0, 0))
            return
        calls = len(plan)
        parts = [plan.timesteps[:, None], plan.noise_levels[1:], plan.blend, plan.guidance]
        rows = np.concatenate([*parts, plan.coefficients.reshape(calls, -1)], 1).astype("<f4")
        node = 0
        for i in range(calls - 1, -1, -1):
            call = self._calls.add(rows[i].tobytes(), bytes([bool(plan.draws[i])]))
            node = self._nodes.setdefault((call, node), len(self._nodes)) + 1
        start = np.concatenate([plan.initial.ravel(), plan.noise_levels[0]]).astype("<f4")
        self._plans.append((self._starts.add(start.tobytes()) + 1, node - 1))

    def sizes(self) -> dict[str, int]:
        """What the index says of the tables."""
        calls, call_patterns, call_values = self._calls.sizes()
        starts, start_patterns, start_values = self._starts.sizes()
        return {
            "values": call_values + start_values,
            "nodes": len(self._nodes),
            "plans": len(self._plans),
            "calls": calls,
            "starts": starts,
            "call_patterns": call_patterns,
            "start_patterns": start_patterns,
        }

    def data(self) -> bytes:
        """The tables, one after the other."""
        call_uses, call_patterns, call_values = self._calls.tables()
        start_uses, start_patterns, start_values = self._starts.tables()
        nodes = np.array(list(self._nodes), "<u4").tobytes()
        plans = np.array(self._plans, "<u4").tobytes()
        parts = (call_values, start_values, nodes, plans, call_uses, start_uses, call_patterns, start_patterns)
        return b"".join(parts)


def _pattern(row: list[int]) -> tuple[bytes, list[int]]:
    """The pattern of a row of bits, and the values that it does not say."""
    seen: dict[int, int] = {}
    pattern = bytearray()
    for bits in row:
        if bits == 0:
            pattern.append(_ZERO)
        elif bits == _ONE_BITS:
            pattern.append(_ONE)
        elif bits in seen:
            pattern.append(_AGAIN + seen[bits])
        else:
            pattern.append(_NEXT)
            seen[bits] = len(seen)
    return bytes(pattern), list(seen)
