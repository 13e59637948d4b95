"""The examples run, made small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ghn_fast

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

WRONG = """
import torch

def distances(edges, nodes, cutoff):
    return torch.zeros(0, 3, dtype=torch.long)
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    name, *arguments = words
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("finetune.py", "--steps", "2", "--channels", "8", "--network", "deepnets:val:0",
          "--image-size", "8"),
         "predicted start: "),
        (("search.py", "--candidates", "2", "--most-parameters", "2e5", "--image-size", "8"),
         "% test"),
        (("metatrain.py", "--images", "digits", "--image-size", "16", "--steps", "1", "--hid", "8",
          "--meta-batch", "1", "--max-nodes", "120"), "that it has never seen"),
        (("guard_kernel.py", "--cases", "4", "--repeats", "2"), "equal on 4 graphs"),
    ],
    ids=lambda v: v[0] if isinstance(v, tuple) else "",
)  # fmt: skip
def test_an_example_runs(tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    pytest.importorskip("sklearn")
    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("example", "suffix"),
    [("plot_metrics.py", ""), ("compare_runs.py", ""), ("learning_curve.py", ":0.5")],
)
def test_runs_are_drawn(tmp_path: Path, example: str, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        lines = [{"step": k, "loss": 2 / k if k % 9 else None, "top1": k} for k in range(1, 121)]
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / name / "metrics.jsonl").write_text(text)
    done = run(tmp_path, example, "curve.png", f"first{suffix}", f"second{suffix}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_points_of_a_curve_are_medians_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from plot_metrics import medians, read_steps, windows

    groups = windows([{"step": k, "loss": float(k)} for k in range(11)], count=3)
    assert [[step["step"] for step in group] for group in groups] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
    ]
    assert medians(groups, "loss") == [1.0, 4.0, 7.0]
    assert windows([{"step": 0}, {"step": 1}], least=3) == []
    with pytest.raises(SystemExit, match=r"nowhere: has no metrics\.jsonl"):
        read_steps(Path("nowhere"))


def test_a_hypernetwork_of_other_rules_searches(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    config = ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3), rules="ghn3")
    ghn_fast.GHN(config).save_pretrained(tmp_path / "ghn")
    words = ("--candidates", "1", "--most-parameters", "1e9", "--image-size", "8", "--ckpt", "ghn")
    done = run(tmp_path, "search.py", *words)
    assert done.returncode == 0, done.stderr


def test_a_kernel_that_is_wrong_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WRONG)
    done = run(tmp_path, "guard_kernel.py", "--implementation", "mine.py:distances", "--cases", "3")
    assert done.returncode == 1
    assert "differs: " in done.stderr
