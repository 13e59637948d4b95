"""Record the counts of the guarded cases, or compare them with what is recorded.

    python benchmarks/track.py [--check]

Counts (benchmarks/suite/counting.py) are exact. With --check nothing is written, and the exit
status is 1 if a count differs from benchmarks/tracked.json; a smaller one is to be recorded, too.
"""

from __future__ import annotations

import argparse
import os
import sys

# Before torch is imported: what its profiler says about itself.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from measure import ROOT

sys.path.insert(0, str(ROOT))

from suite.cases import guarded_cases
from suite.tracked import (
    RECORD,
    UPDATE,
    count_all,
    differences,
    read_record,
    release,
    write_record,
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args(argv)
    recorded = (read_record() if RECORD.is_file() else {}).get(release(), {})
    found, skipped = count_all(guarded_cases())
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    lines = differences(found, recorded)
    print("\n".join(lines) or f"{len(found)} cases are as recorded for {release()}")
    if arguments.check:
        if lines:
            print(UPDATE)
        return 1 if lines else 0
    write_record(found)
    print(f"recorded {len(found)} cases for {release()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
