"""Counts of the guarded cases, without noise; see benchmarks/suite/counting.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from suite.cases import guarded_cases

Counts = dict[str, dict[str, int]]
_CASES = tuple(case.name for case in guarded_cases())


class _Counted:
    version = "1"
    timeout = 1800
    params = (_CASES,)
    param_names = ("case",)

    def setup(self, found: Counts, case: str) -> None:
        """A case that cannot run on this machine is not available (n/a)."""
        if case not in found:
            raise NotImplementedError("skipped: it was not counted on this machine")

    def _of(self, found: Counts, case: str, count: str) -> float:
        # asv shows NaN as n/a.
        return found[case].get(count, float("nan"))


class Tracked(_Counted):
    """Calls, launches, allocations and bytes moved of one call of a case."""

    def setup_cache(self) -> Counts:
        """Count every case once."""
        from suite.tracked import count_all

        return count_all(guarded_cases())[0]

    def track_calls(self, found: Counts, case: str) -> float:
        """Operator calls."""
        return self._of(found, case, "calls")

    def track_moved_bytes(self, found: Counts, case: str) -> float:
        """Bytes that operators read and wrote."""
        return self._of(found, case, "moved_bytes")

    def track_allocations(self, found: Counts, case: str) -> float:
        """Allocations of memory."""
        return self._of(found, case, "allocations")

    def track_allocated_bytes(self, found: Counts, case: str) -> float:
        """Allocated bytes."""
        return self._of(found, case, "allocated_bytes")

    def track_launches(self, found: Counts, case: str) -> float:
        """Kernels launched on a GPU."""
        return self._of(found, case, "launches")


class Instructions(_Counted):
    """Instructions of one call of a case under valgrind; takes minutes, needs to be asked for.

    GHN_FAST_INSTRUCTIONS=1 asks for them.
    """

    def setup_cache(self) -> Counts:
        """Count every case once; none without valgrind or without being asked to."""
        from suite.callgrind import NotCountedError, count_instructions

        import ghn_fast

        if os.environ.get("GHN_FAST_INSTRUCTIONS") != "1":
            return {}
        try:
            found = count_instructions(Path(ghn_fast.__file__).parent.parent, _CASES)
        except NotCountedError as reason:
            print(reason, file=sys.stderr)
            return {}
        return {name: {"instructions": sum(c.values())} for name, c in found.items()}

    def track_instructions(self, found: Counts, case: str) -> float:
        """Executed instructions."""
        return self._of(found, case, "instructions")
