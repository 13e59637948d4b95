"""Compare this checkout, or a revision, with a base: times and counts of the guarded cases.

    python benchmarks/compare.py BASE [--head REV] [--only TEXT ...] [--rounds 25]
                                 [--instructions] [--json FILE]

Both are built (C++ that has not changed is not built again). In every round two fresh processes,
one per revision, on one processor, take turns in slices of some milliseconds; the ratio of the
lower quartiles of their processor time is one sample, and the sign test gives an interval for the
median of the samples. A case is slower when the whole interval is above its threshold. Rounds go on
while a case is open. Counts (benchmarks/suite/counting.py) must not grow at all.

The cases are those of this checkout, also for the base. What the base does not have is listed, not
compared. The exit status is 0 if nothing is slower, has grown or failed, 1 if something has, and 2
if the comparison could not be made.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from measure import ROOT, about
from suite.cases import choose, guarded_cases
from suite.decide import interval
from suite.instructions import NotCountedError, count_instructions
from suite.processes import WorkerError
from suite.rounds import MOST_ROUNDS, Outcome, compare, table
from suite.trees import BuildError, build, tree_of

# Part by which executed instructions may grow: hash tables and the allocator vary by less.
INSTRUCTIONS = 1.01


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="the revision to compare with")
    parser.add_argument("--head", help="the revision that is judged; this checkout if not given")
    parser.add_argument("--head-tree", type=Path, help="a folder in the place of a revision")
    parser.add_argument("--only", nargs="+", help="cases whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=MOST_ROUNDS, help="at most so many")
    parser.add_argument("--no-counts", action="store_true", help="times alone")
    parser.add_argument("--no-times", action="store_true", help="counts alone")
    parser.add_argument(
        "--instructions", action="store_true", help="also instructions, under valgrind (minutes)"
    )
    parser.add_argument("--json", type=Path, help="where to write the outcome")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 5 and not arguments.no_times:
        parser.error(f"--rounds: got {arguments.rounds}, needs at least 5 to find anything slower")
    try:
        cases = choose(guarded_cases(), arguments.only)
    except ValueError as error:
        parser.error(str(error))
    begin = time.monotonic()
    try:
        base = tree_of(arguments.base)
        given = arguments.head_tree
        head = given.resolve() if given else (tree_of(arguments.head) if arguments.head else ROOT)
        build(head)
        outcomes = compare(
            base,
            head,
            cases,
            most_rounds=arguments.rounds,
            counts=not arguments.no_counts,
            times=not arguments.no_times,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        lines = table(outcomes)
        wrong = [outcome.case.name for outcome in outcomes if outcome.failed]
        if arguments.instructions:
            more, grown = _instructions(base, head, outcomes)
            lines += more
            wrong += [name for name in grown if name not in wrong]
    except (BuildError, WorkerError, NotCountedError) as error:
        print(f"bench-compare: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    measured = sum(bool(outcome.ratios or outcome.counts) for outcome in outcomes)
    print(
        f"{measured} of {len(outcomes)} cases compared in {time.monotonic() - begin:.0f} s; "
        + (f"{len(wrong)} slower, grown or failed" if wrong else "none is slower")
    )
    for name in wrong:
        print(f"WRONG {name}")
    if measured == 0 and not wrong:
        print("bench-compare: no case could be compared", file=sys.stderr)
        return 2
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report(outcomes, arguments.base), indent=2) + "\n")
    return 1 if wrong else 0


def report(outcomes: list[Outcome], base: str) -> dict[str, Any]:
    """Turn the outcome into plain values for JSON."""
    cases = {}
    for outcome in outcomes:
        cases[outcome.case.name] = {
            "median": interval(outcome.ratios).median if outcome.ratios else None,
            "ratios": outcome.ratios,
            "seconds": outcome.seconds,
            "threshold": outcome.case.threshold,
            "verdict": str(outcome.verdict),
            "counts": outcome.counts,
            "grown": outcome.grown,
            "skipped": outcome.skipped,
            "lacking": outcome.lacking,
            "error": outcome.error,
        }
    return {"base": base, "about": about(1), "cases": cases}


def _instructions(base: Path, head: Path, outcomes: list[Outcome]) -> tuple[list[str], list[str]]:
    """Count instructions: lines about them, and the names of the cases that execute more."""
    names = [outcome.case.name for outcome in outcomes if outcome.counts or outcome.ratios]
    before, after = (count_instructions(tree, names) for tree in (base, head))
    lines, grown = ["instructions, under valgrind:"], []
    for name in names:
        ratio = after[name] / before[name]
        slower = ratio > INSTRUCTIONS
        lines.append(
            f"    {before[name]} -> {after[name]}, ratio {ratio:.4f}"
            f"{': GROWN' if slower else ''}  {name}"
        )
        if slower:
            grown.append(name)
    return lines, grown


if __name__ == "__main__":
    sys.exit(main())
