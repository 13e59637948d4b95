"""What a comparison says: a table for people, Markdown for a pull request, JSON for services.

The JSON formats are those of github-action-benchmark (`customSmallerIsBetter`: a list of name,
unit, value, range, extra) and of Bencher (Bencher Metric Format: measures by name, with `value`,
`lower_value`, `upper_value`; its built-in measure `latency` is in nanoseconds).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from suite.decide import EARLY_PASS, Interval, Verdict, interval
from suite.machine import about
from suite.noise import SUITE, Tier, false_alarms
from suite.rounds import Outcome

_WORST_FIRST = (Verdict.SLOWER, Verdict.UNDECIDED, Verdict.PASSED, Verdict.FASTER)


def by_effect(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Sort: what fails first, then by the size of the effect, and what has no times last."""

    def key(outcome: Outcome) -> tuple[bool, bool, float]:
        size = abs(math.log(interval(outcome.ratios).centre)) if outcome.ratios else 0.0
        return not outcome.failed, not outcome.ratios, -size

    return sorted(outcomes, key=key)


def known_interval(outcome: Outcome) -> Interval:
    """The interval that the verdict of a case comes from."""
    if outcome.verdict in (Verdict.PASSED, Verdict.FASTER):
        return interval(outcome.ratios, EARLY_PASS)
    return interval(outcome.ratios)


def word(outcome: Outcome) -> str:
    """The verdict in a word or two; a case whose tests fail has no other one."""
    if outcome.red is not None:
        return "RED"
    if outcome.error is not None:
        return "FAILED"
    if outcome.skipped is not None:
        return "skipped"
    if outcome.lacking is not None:
        return "not in base"
    words = [str(outcome.verdict)] if outcome.ratios else []
    if outcome.grown:
        words.append("GROWN")
    return ", ".join(words) or "counted"


def details(outcome: Outcome) -> list[str]:
    """What is to be said of a case beside its times."""
    lines = []
    for reason in (outcome.red, outcome.error, outcome.skipped, outcome.lacking):
        if reason is not None:
            lines.append(reason)
    if outcome.counts is not None:
        before, after = outcome.counts
        for key in after:
            if key in outcome.grown:
                lines.append(f"{key} {before.get(key, 0)} -> {after[key]}: GROWN")
            elif after[key] < before.get(key, 0):
                lines.append(f"{key} {before[key]} -> {after[key]}: fewer")
    for reason, count in outcome.throttled.items():
        lines.append(f"{count} pairs of slices dropped: {reason}")
    return lines


def duration(seconds: float) -> str:
    """Write a duration with a unit and three digits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Write a line per case, the largest effect first."""
    lines = []
    for outcome in by_effect(outcomes):
        numbers = ""
        if outcome.ratios and outcome.seconds is not None:
            found = known_interval(outcome)
            before, after = (duration(seconds) for seconds in outcome.seconds)
            numbers = (
                f"{100 * (found.centre - 1):+6.1f} % ({found.low:.3f} to {found.high:.3f}, "
                f"{len(outcome.ratios)} rounds, threshold {outcome.threshold:.3g})  "
                f"{before} -> {after}  "
            )
        lines.append(f"{word(outcome):11} {numbers}{outcome.case.name}")
        lines += [f"{'':12}{line}" for line in details(outcome)]
    return lines


def closing(outcomes: Sequence[Outcome], tiers: Mapping[str, Tier], seconds: float) -> list[str]:
    """Write what it comes to: what is wrong, what is undecided, what to think of the suite."""
    measured = [o for o in outcomes if o.ratios or o.counts]
    wrong = [o for o in outcomes if o.failed]
    lines = [
        f"{len(measured)} of {len(outcomes)} cases compared in {seconds:.0f} s; "
        + (f"{len(wrong)} slower, grown, red or failed" if wrong else "none is slower")
    ]
    lines += [f"WRONG {o.case.name}" for o in wrong]
    lines += [
        f"UNDECIDED {o.case.name}"
        for o in outcomes
        if o.ratios and not o.failed and o.verdict is Verdict.UNDECIDED
    ]
    known = {o.case.name: tiers[o.case.name] for o in outcomes if o.case.name in tiers}
    if known:
        rate = false_alarms(known)
        lines.append(
            f"False alarms to expect: {100 * rate:.1f} % of such runs of {len(known)} cases "
            f"(thresholds from A/A rounds here; at most {100 * SUITE:.0f} % of full runs)"
        )
    unknown = [o for o in measured if o.case.name not in tiers]
    if unknown:
        lines.append(
            f"Thresholds of {len(unknown)} cases are guesses: `make bench-noise` measures the noise"
        )
    return lines


def markdown(outcomes: Sequence[Outcome], base: str, close: Sequence[str]) -> str:
    """Write the table for a pull request."""
    lines = [
        f"### Benchmarks against `{base}`",
        "",
        "| verdict | change | interval | threshold | before | after | case |",
        "|---|---:|---|---:|---:|---:|---|",
    ]
    for outcome in by_effect(outcomes):
        cells = ["", "", "", "", ""]
        if outcome.ratios and outcome.seconds is not None:
            found = known_interval(outcome)
            cells = [
                f"{100 * (found.centre - 1):+.1f} %",
                f"{found.low:.3f} to {found.high:.3f}",
                f"{outcome.threshold:.3g}",
                *(duration(seconds) for seconds in outcome.seconds),
            ]
        more = "".join(f"<br>{line.replace('|', '/')}" for line in details(outcome))
        verdict = f"**{word(outcome)}**" if outcome.failed else word(outcome)
        lines.append(f"| {verdict} | {' | '.join(cells)} | `{outcome.case.name}`{more} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in close)]) + "\n"


def report(outcomes: Iterable[Outcome], base: str, tiers: Mapping[str, Tier]) -> dict[str, Any]:
    """Turn the outcome into plain values for JSON."""
    cases = {}
    for outcome in outcomes:
        cases[outcome.case.name] = {
            "change": interval(outcome.ratios).centre if outcome.ratios else None,
            "verdict": word(outcome),
            "ratios": outcome.ratios,
            "seconds": outcome.seconds,
            "threshold": outcome.threshold,
            "counts": outcome.counts,
            "grown": outcome.grown,
            "throttled": outcome.throttled,
            "details": details(outcome),
        }
    known = {name: tier for name, tier in tiers.items() if name in cases}
    return {
        "base": base,
        "about": about(1),
        "false_alarms": false_alarms(known) if known else None,
        "cases": cases,
    }


def action_json(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Write the times of the changed revision as github-action-benchmark reads them."""
    found = []
    for outcome in outcomes:
        if outcome.red is None and outcome.ratios and outcome.seconds is not None:
            known = known_interval(outcome)
            found.append(
                {
                    "name": outcome.case.name,
                    "unit": "ns/call",
                    "value": 1e9 * outcome.seconds[1],
                    "range": f"ratio {known.low:.3f} to {known.high:.3f}",
                    "extra": f"{word(outcome)}: {known.centre:.3f} times the base, "
                    f"threshold {outcome.threshold:.3g}",
                }
            )
    return found


def bencher_json(outcomes: Iterable[Outcome]) -> dict[str, dict[str, dict[str, float]]]:
    """Write times and counts of the changed revision in Bencher's format."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for outcome in outcomes:
        measures: dict[str, dict[str, float]] = {}
        if outcome.red is None and outcome.ratios and outcome.seconds is not None:
            known, after = known_interval(outcome), outcome.seconds[1]
            measures["latency"] = {"value": 1e9 * after}
            if known.low > 0 and math.isfinite(known.high):
                # Ends of the interval for the change, around the same value.
                measures["latency"] |= {
                    "lower_value": 1e9 * after * min(known.low / known.centre, 1.0),
                    "upper_value": 1e9 * after * max(known.high / known.centre, 1.0),
                }
        if outcome.counts is not None:
            for name, count in outcome.counts[1].items():
                measures[name.replace("_", "-")] = {"value": float(count)}
        if measures:
            found[outcome.case.name] = measures
    return found
