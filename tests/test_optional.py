"""Without the libraries that are optional: what needs none works, the rest says what it needs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ghn_fast

# Each command runs in a process that finds none of the libraries.
SCRIPT = """
import contextlib, io, json, sys

# What is None here is not there: imports fail, and nothing is found.
sys.modules.update(dict.fromkeys("BLOCKED".split()))
from ghn_fast import cli

results = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["ghn-fast", *words]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
    results.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""
OPTIONAL = "torchvision PIL sklearn h5py matplotlib tensorboard wandb timm transformers scipy"
TRAIN = (
    "train", "--deepnets", "5", "--meta-batch", "1", "--batch-size", "4", "--hid", "8", "--steps",
    "1", "--set", "image_size=16", "--set", "max_channels=32", "--set", "max_nodes=120",
)  # fmt: skip


SMALL = (
    "deepnets:val:1", "--image-size", "8", "--channels", "8", "--cells", "3", "--steps", "2",
    "--batch-size", "8", "--init", "random",
)  # fmt: skip


def run(commands: list[tuple[str, ...]], blocked: str, folder: Path) -> list[list[str]]:
    script = SCRIPT.replace("BLOCKED", blocked)
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
        check=True,
    )
    results: list[list[str]] = json.loads(done.stdout)
    return results


def test_what_needs_no_optional_library(tmp_path: Path) -> None:
    commands: list[tuple[str, ...]] = [
        ("predict", "deepnets:test:0", "--out", "x.safetensors", "--json"),
        ("deepnets", "generate", "--split", "train", "--count", "3", "--out", "nets", "--json"),
        ("doctor", "--json"),
        ("models", "--json"),
    ]
    for words, (status, printed, error) in zip(
        commands, run(commands, OPTIONAL, tmp_path), strict=True
    ):
        assert status == 0, (words, error)
        assert json.loads(printed)


def test_what_is_missing_is_named_with_its_extra(tmp_path: Path) -> None:
    commands = {
        ("predict", "resnet18"): ("networks of torchvision", "vision"),
        ("predict", "timm:resnet18"): ("networks of timm", "timm"),
        ("predict", "hf:vit"): ("networks of transformers", "transformers"),
        ("predict", "deepnets:predefined:0"): ("networks of torchvision", "vision"),
        ("draw", "deepnets:test:0", "--out", "x.svg"): ("pictures", "drawing"),
        ("evaluate", "--ckpt", "ghn2-digits"): ("handwritten digits", "vision"),
        ("evaluate", "--ckpt", "ghn2-digits", "--dataset", "folder:."): ("images", "vision"),
        (*TRAIN, "--out", "run"): ("handwritten digits", "vision"),
        ("deepnets", "generate", "--split", "val", "--count", "3", "--out", "n"): ("files", "hdf5"),
    }
    (tmp_path / "train" / "one").mkdir(parents=True)
    results = run(list(commands), OPTIONAL, tmp_path)
    for (words, (purpose, extra)), (status, _, error) in zip(
        commands.items(), results, strict=True
    ):
        assert status == 2, (words, error)
        assert purpose in error, (words, error)
        if "folder:." not in words:  # a folder without images is refused as one
            assert f"pip install 'ghn-fast[{extra}]' brings it" in error, (words, error)


def test_work_is_done_without_pictures_and_tensorboard(tmp_path: Path) -> None:
    for library in ("torchvision", "PIL", "sklearn"):
        pytest.importorskip(library)
    commands: list[tuple[str, ...]] = [
        (*TRAIN, "--out", "run"),
        ("evaluate", "--ckpt", "ghn2-digits", "--limit", "1", "--json"),
        ("sgd", *SMALL, "--out", "sgd", "--json"),
        ("embeddings", "test", "--count", "3", "--reference", "3", "--json"),
        ("search", "--by", "predicted", "--count", "1", "--image-size", "16", "--json"),
    ]
    for words, (status, _, error) in zip(
        commands, run(commands, "matplotlib tensorboard h5py", tmp_path), strict=True
    ):
        assert status == 0, (words, error)
        if words[0] != "train":
            assert "pictures need matplotlib" in error, words
    for name in ("evaluation/test-digits", "sgd/sgd", "embeddings/embeddings", "search/search"):
        assert (tmp_path / f"{name}.json").is_file()
    assert not [*tmp_path.rglob("*.png")]
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def test_commands_draw_only_what_they_can() -> None:
    """What is drawn beside other results goes through ``picture``, which asks for matplotlib."""
    folder = Path(ghn_fast.__file__).parent / "commands"
    seen = 0
    for path in sorted(folder.glob("*.py")):
        if path.name == "pictures.py":  # a picture is all that the command draw makes
            continue
        tree = ast.parse(path.read_text())
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            drawn = name.startswith("draw_") or name == "histogram"
            assert not drawn, f"{path.name}, line {call.lineno}: call {name} by picture()"
            seen += name == "picture"
    assert seen >= 10
