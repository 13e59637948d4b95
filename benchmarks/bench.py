"""The benchmarks of ghn_fast: compare revisions, find culprits, count, measure, write pages.

python benchmarks/bench.py COMMAND --help says more about each; the Makefile has a target for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is imported: threads, and what its profiler says about itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from suite import gate, noise, outputs
from suite.callgrind import NOISE, NotCountedError, count_instructions
from suite.callgrind import table as instruction_table
from suite.cases import Case, choose, find_case, guarded_cases
from suite.culprit import NotSlowerError, search
from suite.machine import RESULTS, ROOT
from suite.processes import ALLOCATOR, WorkerError, environment
from suite.rounds import MOST_ROUNDS, compare
from suite.trees import BuildError, build, commit_of_revision, tree_of

sys.path.insert(0, str(ROOT))

Arguments = argparse.Namespace
CannotError = (BuildError, WorkerError, NotCountedError, NotSlowerError)


def say(line: str) -> None:
    """Print what is going on, apart from the result."""
    print(line, file=sys.stderr, flush=True)


def trees(arguments: Arguments) -> tuple[Path, Path]:
    """The trees of the base and of what is judged, with compiled ops."""
    base = tree_of(arguments.base)
    if arguments.head_tree is not None:
        head = arguments.head_tree.resolve()
    else:
        head = tree_of(arguments.head) if arguments.head else ROOT
    build(head)
    return base, head


def run_compare(arguments: Arguments) -> int:
    """Compare this checkout, or a revision, with a base: times and counts of the guarded cases."""
    cases = choose(guarded_cases(), arguments.only)
    tiers = noise.read_tiers(arguments.results)
    base, head = trees(arguments)
    red = {} if arguments.no_gate else gate.red_cases(head, cases)
    begin = time.monotonic()
    outcomes = compare(
        base,
        head,
        cases,
        thresholds={name: tier.threshold for name, tier in tiers.items()},
        red=red,
        most_rounds=arguments.rounds,
        most_seconds=arguments.seconds,
        counts=not arguments.no_counts,
        times=not arguments.no_times,
        say=say,
    )
    print("\n".join(outputs.table(outcomes)))
    close = outputs.closing(outcomes, tiers, time.monotonic() - begin)
    print("\n".join(close))
    more = False
    if arguments.instructions:
        more = print_instructions(base, head, [o.case.name for o in outcomes if o.ratios])
    written: list[tuple[Path | None, Any]] = [
        (arguments.json, outputs.report(outcomes, arguments.base, tiers)),
        (arguments.action_json, outputs.action_json(outcomes)),
        (arguments.bencher_json, outputs.bencher_json(outcomes)),
    ]
    for path, values in written:
        if path is not None:
            path.write_text(json.dumps(values, indent=2) + "\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(outputs.markdown(outcomes, arguments.base, close))
    wrong = more or any(outcome.failed for outcome in outcomes)
    if not wrong and not any(outcome.ratios or outcome.counts for outcome in outcomes):
        say("bench-compare: no case could be compared")
        return 2
    return 1 if wrong else 0


def print_instructions(base: Path, head: Path, names: list[str]) -> bool:
    """Count and print instructions by function; says whether a case executes more."""
    before, after = (count_instructions(tree, names) for tree in (base, head))
    grown = False
    for name in names:
        if name in before and name in after:
            more = sum(after[name].values()) > NOISE * sum(before[name].values())
            print(f"{name}{': GROWN' if more else ''}")
            print("\n".join(f"  {line}" for line in instruction_table(before[name], after[name])))
            grown |= more
    return grown


def run_instructions(arguments: Arguments) -> int:
    """Show which functions execute more or fewer instructions than in a base (valgrind)."""
    cases = choose(guarded_cases(), arguments.only)
    base, head = trees(arguments)
    return int(print_instructions(base, head, [case.name for case in cases]))


def run_noise(arguments: Arguments) -> int:
    """Measure the noise of this machine with a revision against itself; sets the thresholds."""
    tree = tree_of(arguments.revision)
    cases = choose(guarded_cases(), arguments.only)
    outcomes = compare(
        tree, tree, cases, most_rounds=arguments.rounds, most_seconds=arguments.seconds,
        stops=False, counts=False, say=say,
    )  # fmt: skip
    found = {o.case.name: o.ratios for o in outcomes if o.ratios}
    if not found:
        say("bench-noise: no case could be measured")
        return 2
    tiers = noise.write_noise(found, MOST_ROUNDS, arguments.results)
    print("threshold  spread  false alarm  found at 1.08  1.15  rounds  case")
    for name, tier in sorted(tiers.items(), key=lambda item: -item[1].threshold):
        shown = "  ".join(f"{100 * part:5.1f} %" for part in tier.found.values())
        print(
            f"{tier.threshold:9.3g}  {100 * tier.spread:4.1f} %  {100 * tier.false_alarm:8.2f} %  "
            f"{shown}  {tier.rounds:6}  {name}"
        )
    rate = 100 * noise.false_alarms(tiers)
    print(f"A full run of {len(tiers)} unchanged cases raises an alarm in {rate:.1f} % of the runs")
    print(f"Kept in {noise.file_of(arguments.results)}")
    return 0


def run_bisect(arguments: Arguments) -> int:
    """Find the commit between two revisions that made a case slower."""
    (case,) = one_case(arguments.case)
    good, bad = (commit_of_revision(name) for name in (arguments.good, arguments.bad))
    listed = subprocess.run(
        ["git", "rev-list", "--reverse", "--first-parent", f"{good}..{bad}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    if not listed:
        say(f"bench-bisect: {arguments.bad} is not after {arguments.good}")
        return 2
    begin = time.monotonic()
    found = search(good, listed, case, tree_of, say, arguments.seconds)
    named, chance = found.answer()
    total = sum(found.rounds.values())
    print(
        f"{len(listed)} commits, {total} rounds on {len(found.rounds)} of them, "
        f"{time.monotonic() - begin:.0f} s"
    )
    for commit, reason in found.broken.items():
        print(f"passed over {commit[:10]}: {reason}")
    print(f"The case was made slower by {' or '.join(named)}, {100 * chance:.1f} % sure")
    for commit in named:
        subprocess.run(["git", "log", "-1", "--format=%h %an %ad %s", commit], cwd=ROOT)
    return 0 if chance >= 0.9 else 1


def one_case(text: str) -> list[Case]:
    """The guarded case that a name, or a part of one, stands for.

    Raises:
        ValueError: If it is a part of several names, or of none.
    """
    found = choose(guarded_cases(), [text])
    exact = [case for case in found if case.name == text]
    here = [case for case in found if case.device == "cpu"] or found
    if len(exact or here) != 1:
        names = "; ".join(case.name for case in here)
        raise ValueError(f"case: {text!r} is in the name of several cases: {names}")
    return exact or here


def run_prove(arguments: Arguments) -> int:
    """Count how often planted slow-downs are found, and alarms on unchanged trees (hours)."""
    from suite.proof import CASES, PERCENTS, Proof

    tiers = noise.read_tiers(arguments.results)
    if not tiers:
        say("bench-prove: the noise of this machine is not known; run `make bench-noise` first")
        return 2
    thresholds = {name: tier.threshold for name, tier in tiers.items()}
    proof = Proof(tree_of(arguments.revision), thresholds, arguments.results, say)
    try:
        for path in arguments.plants or CASES:
            for percent in PERCENTS:
                proof.planted(path, percent, arguments.runs)
        proof.unchanged(arguments.unchanged)
    except KeyboardInterrupt:
        say("bench-prove: interrupted; the same command goes on")
    print("\n".join(proof.table()))
    return 0


def run_track(arguments: Arguments) -> int:
    """Record the counts of the guarded cases, or compare them with what is recorded."""
    from suite import tracked

    recorded = (tracked.read_record() if tracked.RECORD.is_file() else {}).get(
        tracked.release(), {}
    )
    found, skipped = tracked.count_all(guarded_cases())
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    more, less = tracked.grown(found, recorded), tracked.shrunk(found, recorded)
    print("\n".join([*more, *less]) or f"{len(found)} cases are as recorded")
    if arguments.check:
        if more:
            print(tracked.UPDATE)
        elif less:
            print(tracked.SMALLER)
        return 1 if more else 0
    tracked.write_record(found)
    print(f"recorded {len(found)} cases for {tracked.release()}")
    return 0


def run_measure(arguments: Arguments) -> int:
    """Measure every case into one results file."""
    from suite.measuring import measure_all

    report = measure_all(arguments.out, arguments.only, say, arguments.commit)
    wrong = [name for name, case in report["cases"].items() if "error" in case]
    print(f"Wrote {arguments.out} with {len(report['cases'])} cases")
    for name in wrong:
        print(f"FAILED {name}")
    return 1 if wrong else 0


def run_docs(arguments: Arguments) -> int:
    """Write docs/performance.md and README's table from a results file."""
    from suite.pages import write_pages

    for path in write_pages(json.loads(arguments.file.read_text()), arguments.root):
        print(f"Wrote {path}")
    return 0


def run_site(arguments: Arguments) -> int:
    """Write a page with the trends of all results of asv, and the commits that moved them."""
    from suite.results import series
    from suite.trends import write_page

    found = series(arguments.results / "results")
    if not found:
        say(f"bench-publish: there are no results in {arguments.results / 'results'}; `asv run`")
        return 2
    print(f"Wrote {write_page(found, arguments.out)} with {len(found)} series")
    return 0


def run_floors(arguments: Arguments) -> int:
    """Check that compiled ops are well above the references; part of CI."""
    import torch
    from suite.floors import check

    torch.set_num_threads(1)
    return check(arguments.seconds)


def run_once(arguments: Arguments) -> int:
    """Run one case for a profiler; without --run, print the line that does so with ncu."""
    case = find_case(arguments.case)
    if not arguments.run:
        print(ncu_line(case))
        return 0
    import torch
    from suite.setups import SkippedError, prepared

    try:
        with prepared(case) as run:
            for _ in range(3):
                run()
            if case.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
            run()
            if case.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()
    except SkippedError as reason:
        say(f"bench-profile: {reason}")
        return 2
    return 0


def ncu_line(case: Case) -> str:
    """The command that profiles one call of a case with NVIDIA Nsight Compute."""
    return (
        "ncu --set full --target-processes all --profile-from-start off --force-overwrite "
        f"--export {case.path}.ncu-rep {sys.executable} benchmarks/bench.py profile "
        f'"{case.name}" --run'
    )


COMMANDS: dict[str, Callable[[Arguments], int]] = {
    "compare": run_compare,
    "bisect": run_bisect,
    "noise": run_noise,
    "instructions": run_instructions,
    "prove": run_prove,
    "track": run_track,
    "measure": run_measure,
    "docs": run_docs,
    "site": run_site,
    "floors": run_floors,
    "profile": run_once,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(dest="command", required=True)
    made = {n: commands.add_parser(n, help=run.__doc__, description=run.__doc__)
            for n, run in COMMANDS.items()}  # fmt: skip
    for name in ("compare", "instructions"):
        made[name].add_argument("base", help="the revision to compare with")
        made[name].add_argument("--head", help="the revision that is judged, not this checkout")
        made[name].add_argument("--head-tree", type=Path, help="a folder in the place of one")
    for name in ("compare", "instructions", "noise", "measure"):
        made[name].add_argument(
            "--only", action="extend", nargs="+", help="cases whose name contains one of these"
        )
    for name in ("compare", "noise", "prove", "site"):
        made[name].add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    for name, rounds, seconds in (("compare", MOST_ROUNDS, 570.0), ("noise", 40, 3000.0)):
        made[name].add_argument("--rounds", type=int, default=rounds, help="at most so many")
        made[name].add_argument("--seconds", type=float, default=seconds, help="at most so long")
    add = made["compare"].add_argument
    add("--no-counts", action="store_true", help="times alone")
    add("--no-times", action="store_true", help="counts alone")
    add("--no-gate", action="store_true", help="without running the tests first")
    add("--instructions", action="store_true", help="also instructions, under valgrind (minutes)")
    add("--json", type=Path, help="where to write the outcome")
    add("--markdown", type=Path, help="where to write the table for a pull request")
    add("--action-json", type=Path, help="where to write times for github-action-benchmark")
    add("--bencher-json", type=Path, help="where to write times and counts for Bencher")
    made["noise"].add_argument("revision", nargs="?", default="HEAD")
    made["prove"].add_argument("revision", nargs="?", default="HEAD")
    made["prove"].add_argument("--plants", action="extend", nargs="+", help="these alone")
    made["prove"].add_argument("--runs", type=int, default=10, help="of each plant")
    made["prove"].add_argument("--unchanged", type=int, default=20, help="runs of unchanged trees")
    for name in ("case", "good", "bad"):
        made["bisect"].add_argument(name)
    made["bisect"].add_argument("--seconds", type=float, default=840.0)
    made["track"].add_argument("--check", action="store_true", help="compare, and write nothing")
    made["measure"].add_argument("--out", type=Path, default=RESULTS / "measured.json")
    made["measure"].add_argument("--commit", help="what is measured, if git cannot tell")
    made["docs"].add_argument("file", type=Path, help="a file that `measure` wrote")
    made["docs"].add_argument("--root", type=Path, default=ROOT)
    made["site"].add_argument("--out", type=Path, default=RESULTS / "trends")
    made["floors"].add_argument("--seconds", type=float, default=150)
    made["profile"].add_argument("case", help="name of a case")
    made["profile"].add_argument("--run", action="store_true", help="run it, for a profiler")
    return whole


def main(argv: list[str] | None = None) -> int:
    whole = parser()
    arguments = whole.parse_args(argv)
    if arguments.command == "compare" and arguments.rounds < 7 and not arguments.no_times:
        whole.error(f"--rounds: got {arguments.rounds}, needs at least 7 to find anything slower")
    if arguments.command == "measure" and not ALLOCATOR.items() <= os.environ.items():
        # The allocator reads its settings when the process starts.
        command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)]
        return subprocess.run(command, env=environment(ROOT)).returncode
    try:
        return COMMANDS[arguments.command](arguments)
    except ValueError as error:
        whole.error(str(error))
    except CannotError as error:
        print(f"bench-{arguments.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
