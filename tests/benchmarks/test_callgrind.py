"""Instructions by function: a dump read by hand, and a planted change (slow, needs valgrind)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from suite import callgrind, cases, plants

ROOT = Path(__file__).resolve().parent.parent.parent
DUMP = """# callgrind format
positions: line
events: Ir
fl=(1) a.c
fn=(1) main
16 20
cfn=(2) work
calls=2 30
16 400
+2 5
fn=(2)
30 300
cfn=(3) leaf
calls=1 40
* 100
fn=(3)
40 100
totals: 425
"""


def test_a_function_has_its_own_instructions_not_those_of_what_it_calls() -> None:
    found = callgrind.by_function(DUMP.splitlines())
    assert found == {"main": 25, "work": 300, "leaf": 100}
    assert sum(found.values()) == 425


def test_the_difference_begins_with_what_changed_most() -> None:
    before, after = {"a": 10, "b": 50, "same": 7}, {"a": 30, "c": 45, "same": 7}
    assert callgrind.difference(before, after) == [("b", 50, 0), ("c", 0, 45), ("a", 10, 30)]
    first, second, *_ = callgrind.table(before, after)
    assert first == "67 -> 82 instructions, ratio 1.2239"
    assert second.split() == ["-50", "50", "->", "0", "b"]


PROGRAM = """
static volatile long sum;
__attribute__((noinline)) void work(long n) { for (long i = 0; i < n; i++) sum += i; }
__attribute__((noinline)) void rest(void) { for (long i = 0; i < 1000; i++) sum -= i; }
int main(void) { work(%d); rest(); return 0; }
"""


def test_a_loop_planted_into_a_program_shows_in_its_function(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or shutil.which("valgrind") is None:
        pytest.skip("needs cc and valgrind")
    found = []
    for number, steps in enumerate((10_000, 11_500)):
        source, program, out = (tmp_path / f"{number}{end}" for end in (".c", "", ".out"))
        source.write_text(PROGRAM % steps)
        subprocess.run([compiler, "-O1", "-o", program, source], check=True)
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", str(program)]
        subprocess.run(valgrind, check=True, capture_output=True)
        text = out.read_text()
        found.append(callgrind.by_function(text.splitlines()))
        # What valgrind adds up itself.
        (total,) = re.findall(r"^(?:totals|summary): (\d+)", text, re.M)[-1:]
        assert sum(found[-1].values()) == int(total)
    (name, before, after), *others = callgrind.difference(*found)
    assert name == "work"
    assert 1.14 < after / before < 1.16
    assert found[0]["rest"] == found[1]["rest"] > 0
    assert max((max(one, other) - min(one, other) for _, one, other in others), default=0) < 50


@pytest.mark.slow
@pytest.mark.extension
def test_a_planted_copy_shows_in_the_functions_that_copy(tmp_path: Path) -> None:
    reason = callgrind.problem()
    if reason is not None:
        pytest.skip(reason)
    skip = shutil.ignore_patterns("__pycache__", "pretrained")
    shutil.copytree(ROOT / "ghn_fast", tmp_path / "ghn_fast", ignore=skip)
    plants.plant_copy(tmp_path)
    (case,) = [c for c in cases.guarded_cases() if c.device == "cpu" and c.path == "gated_gnn"
               and c.part == "forward"]  # fmt: skip
    before = callgrind.count_instructions(ROOT, [case.name])[case.name]
    after = callgrind.count_instructions(tmp_path, [case.name])[case.name]
    more = [name for name, one, other in callgrind.difference(before, after)[:8] if other > one]
    assert any("copy" in name or "clone" in name or "memcpy" in name for name in more), more
