"""Counts of the guarded cases, without noise; see benchmarks/suite/counting.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import base

Counts = dict[str, dict[str, int]]


class Tracked:
    """Calls, launches, allocations and bytes moved of one call of a case."""

    version = "1"
    timeout = 600
    params = (tuple(case.name for case in base.guarded_cases()),)
    param_names = ("case",)

    def setup_cache(self) -> Counts:
        """Count every case once."""
        from suite.cases import guarded_cases
        from suite.tracked import count_all

        return count_all(guarded_cases())[0]

    def _of(self, found: Counts, case: str, count: str) -> int:
        if case not in found or count not in found[case]:
            raise NotImplementedError("skipped: not counted on this machine")
        return found[case][count]

    def setup(self, found: Counts, case: str) -> None:
        """A case that cannot run on this machine is not available (n/a)."""
        if case not in found:
            raise NotImplementedError("skipped: it cannot run on this machine")

    def track_calls(self, found: Counts, case: str) -> int:
        """Operator calls."""
        return self._of(found, case, "calls")

    def track_moved_bytes(self, found: Counts, case: str) -> int:
        """Bytes that operators read and wrote."""
        return self._of(found, case, "moved_bytes")

    def track_allocations(self, found: Counts, case: str) -> float:
        """Allocations of memory."""
        return self._of(found, case, "allocations") if "allocations" in found[case] else NOT_HERE

    def track_allocated_bytes(self, found: Counts, case: str) -> float:
        """Allocated bytes."""
        known = "allocated_bytes" in found[case]
        return self._of(found, case, "allocated_bytes") if known else NOT_HERE

    def track_launches(self, found: Counts, case: str) -> float:
        """Kernels launched on a GPU."""
        return self._of(found, case, "launches") if "launches" in found[case] else NOT_HERE


# What asv shows as n/a.
NOT_HERE = float("nan")


class Instructions:
    """Instructions of one call of a case under valgrind; takes minutes, needs to be asked for.

    GHN_FAST_INSTRUCTIONS=1 asks for them.
    """

    version = "1"
    timeout = 1800
    params = Tracked.params
    param_names = ("case",)

    def setup_cache(self) -> dict[str, int]:
        """Count every case once; none without valgrind or without being asked to."""
        from suite.instructions import NotCountedError, count_instructions
        from suite.setups import problem_of

        import ghn_fast

        if os.environ.get("GHN_FAST_INSTRUCTIONS") != "1":
            return {}
        names = [case.name for case in base.guarded_cases() if problem_of(case) is None]
        try:
            return count_instructions(Path(ghn_fast.__file__).parent.parent, names)
        except NotCountedError as reason:
            print(reason, file=sys.stderr)
            return {}

    def setup(self, found: dict[str, int], case: str) -> None:
        """A case without a count is not available (n/a)."""
        if case not in found:
            raise NotImplementedError("skipped: instructions were not counted")

    def track_instructions(self, found: dict[str, int], case: str) -> int:
        """Executed instructions."""
        return found[case]
