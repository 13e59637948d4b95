"""The command line, run in this process as its users run it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

import ghn_fast
from command_line import Run
from ghn_fast import cli
from ghn_fast.commands.deepnets import Split
from ghn_fast.commands.evaluation import EvaluationSplit

TRAIN = (
    "train", "--dataset", "digits", "--deepnets", "20", "--meta-batch", "1", "--batch-size", "8",
    "--seed", "3", "--hid", "8", "--checkpoint-every", "2",
)  # fmt: skip


def test_choices_are_the_splits_that_exist() -> None:
    assert set(EvaluationSplit) == set(ghn_fast.deepnets.SPLITS)
    assert set(Split) == set(ghn_fast.deepnets.SPLITS) - {"predefined"}


def test_generate_and_info(run: Run, tmp_path: Path) -> None:
    arguments = ("--split", "val", "--count", "5", "--out", tmp_path, "--seed", "2")
    status, out, _ = run("deepnets", "generate", *arguments)
    assert status == 0
    assert "val" in out
    assert len(ghn_fast.deepnets.DeepNets(tmp_path, "val")) == 5
    status, out, _ = run("deepnets", "info", tmp_path)
    assert status == 0
    assert "val" in out


def test_demo_shows_what_networks_see(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ghn_fast.commands import demo

    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5)))
    ghn_fast.save_pretrained(ghn, tmp_path / "tiny")
    arguments = ("--count", "1", "--out", tmp_path / "out")
    status, out, _ = run("demo", "--ckpt", tmp_path / "tiny", "--dataset", "digits", *arguments)
    assert status == 0
    assert "resnet50" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"tiny.json", "tiny.png", "tiny-images.png"}
    report = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert (report["dataset"], len(report["records"])) == ("digits", 2)
    status, _, error = run("demo", "--dataset", "digits", *arguments)
    assert status == 2
    assert "--dataset: got digits, needs --ckpt" in error
    # Without arguments: those that come with the package, natural images first.
    assert set(demo._BUNDLED) >= set(ghn_fast.hypernet.checkpoint.bundled())
    assert next(iter(demo._BUNDLED.values())) == "cifar10-sample"


def test_formats_and_conversion(run: Run, tmp_path: Path) -> None:
    arguments = ("--count", "5", "--seed", "2")
    for split, option in (("train", ()), ("val", ("--format", "packed"))):
        status, out, _ = run(
            "deepnets", "generate", "--split", split, *arguments, "--out", tmp_path, *option
        )
        assert status == 0
        assert "written: 5 architectures" in out
    assert {path.suffix for path in tmp_path.iterdir()} == {".ghnpack"}
    status, table, _ = run("deepnets", "info", tmp_path)
    assert status == 0
    assert "train" in table
    assert "val" in table
    status, out, _ = run(
        "deepnets", "convert", tmp_path, "--out", tmp_path / "new", "--format", "hdf5"
    )
    assert status == 0
    assert out.count("written: 5 architectures in ") == 2
    assert run("deepnets", "info", tmp_path / "new")[1] == table
    status, _, error = run("deepnets", "convert", tmp_path, "--out", tmp_path, "--split", "val")
    assert status == 2
    assert "exists" in error


def test_train_continues_and_evaluates(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("architectures: {max_nodes: 120, max_channels: 99}\nsteps: 99\n")
    out = tmp_path / "run"
    for steps in ("2", "3"):
        arguments = (*TRAIN, "--steps", steps, "--out", out, "--config", config)
        more = ("--set", "image_size=16", "--set", "max_channels=32")
        status, printed, error = run(*arguments, *more)
        assert status == 0, error
        assert f"step {steps} of {steps}" in printed
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]

    status, printed, error = run("report", out)
    assert status == 0, error
    assert "<svg" in (out / "report.html").read_text()

    results = tmp_path / "results"
    arguments = ("--ckpt", out, "--split", "test", "--limit", "2", "--out", results)
    status, printed, error = run("evaluate", *arguments)
    assert status == 0, error
    assert "predicted" in printed
    assert "random" in printed
    records = json.loads((results / "test-digits.json").read_text())["records"]
    assert [record["error"] for record in records] == [None, None]
    assert (results / "test-digits.png").stat().st_size > 1000


def test_train_and_evaluate_on_generated_files(run: Run, tmp_path: Path) -> None:
    for split in ("train", "bnfree"):
        arguments = ("--split", split, "--count", "3", "--out", tmp_path)
        assert run("deepnets", "generate", *arguments)[0] == 0
    arguments = ("--deepnets", tmp_path, "--steps", "1", "--out", tmp_path / "run")
    status, _, error = run(*TRAIN, *arguments)
    assert status == 0, error
    arguments = ("--split", "bnfree", "--deepnets", tmp_path, "--limit", "1", "--no-baseline")
    status, printed, error = run(
        "evaluate", "--ckpt", tmp_path / "run", *arguments, "--out", tmp_path / "results"
    )
    assert status == 0, error
    assert "random" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("deepnets", "generate", "--split", "huge", "--count", "1", "--out", "x"), "bnfree"),
        (("deepnets", "generate", "--split", "val", "--count", "-1", "--out", "x"), "--count"),
        (("deepnets", "generate", "--split", "val", "--count", "1", "--out", "x", "--workers", "0"),
         "--workers"),
        (("evaluate", "--ckpt", "ghn2-digits", "--split", "huge"), "predefined"),
        (("evaluate", "--ckpt", "ghn2-digits", "--limit", "0"), "--limit"),
        (("evaluate", "--ckpt", "nothing"), "needs a checkpoint file or folder"),
        (("evaluate", "--ckpt", "nothing", "--device", "gpu9"), "needs cpu, cuda or cuda:N"),
        (("evaluate", "--ckpt", "nothing", "--device", "mps"), "needs cpu, cuda or cuda:N"),
        ((*TRAIN, "--steps", "-4", "--out", "x"), "--steps"),
        ((*TRAIN, "--steps", "4", "--out", "x", "--lr", "0"), "lr: got 0.0"),
        ((*TRAIN, "--steps", "4", "--out", "x", "--set", "speed=1"), "unknown setting 'speed'"),
        ((*TRAIN, "--steps", "4", "--out", "x", "--set", "lr"), "needs it as name=value"),
        ((*TRAIN, "--steps", "4", "--out", "x", "--dataset", "mnist"), "cifar10"),
        ((*TRAIN, "--steps", "4", "--out", "x", "--deepnets", "0"), "at least 1 architecture"),
        ((*TRAIN, "--steps", "4", "--out", "x", "--deepnets", "-5"), "at least 1 architecture"),
        ((*TRAIN, "--steps", "4", "--out", "x", "--deepnets", "nowhere"), "nowhere"),
        ((*TRAIN, "--steps", "4", "--out", "x", "--config", "none.yaml"), "no such configuration"),
        (("deepnets", "info", "nowhere"), "nowhere"),
        (("report", "nowhere"), "no metrics.jsonl"),
        ((*TRAIN, "--steps", "4", "--out", "x", "--precision", "fp8"), "tf32, bf16, fp16, auto"),
        ((*TRAIN, "--steps", "4", "--out", "x", "--eval-every", "-1"), "--eval-every"),
        (("predict", "resnet5000"), "resnet50"),
        (("predict", "resnet18", "--num-classes", str(10**12)), "RuntimeError"),
        (("predict", "resnet18", "--input-size", str(10**9)), "RuntimeError"),
        (("draw", f"deepnets:test:{10**30}", "--out", "x.svg"), "OverflowError"),
        ((*TRAIN, "--steps", "1", "--out", "x", "--deepnets", "9" * 30), "OverflowError"),
        ((*TRAIN, "--steps", "1", "--out", "x", "--hid", str(10**9)), "RuntimeError"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_with_the_valid_values(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, error = run(*arguments)
    assert status == 2
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_is_nested_too_deeply(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("lr: " + "[" * 20_000 + "]" * 20_000)
    status, _, error = run(*TRAIN, "--steps", "1", "--out", tmp_path / "x", "--config", path)
    assert status == 2
    assert "Traceback" not in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_training_leaves_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ghn_fast", *TRAIN, "--steps", "100000", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        metrics = out / "metrics.jsonl"
        while not (metrics.is_file() and metrics.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no step within two minutes"
            time.sleep(0.1)
        process.send_signal(number)
        printed, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == cli.INTERRUPTED, error
    assert "Traceback" not in error
    assert "the same command continues the run" in printed
    steps = len(metrics.read_text().splitlines())
    assert (out / "checkpoints" / f"step-{steps:08d}" / "trainer.pt").is_file()


def test_output_that_is_a_file_is_refused_before_the_work(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for arguments in (
        ("evaluate", "--ckpt", "ghn2-digits", "--out", file),
        ("demo", "--out", file / "deeper"),
        ("predict", "resnet18", "--out", file / "x.safetensors"),
        (*TRAIN, "--steps", "1", "--out", file),
    ):
        status, printed, error = run(*arguments)
        assert status == 2
        assert "--out: got" in error
        assert "needs a folder" in error
        assert not printed


def test_predict_saves_all_parameters(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "new" / "resnet18.safetensors"
    status, printed, error = run("predict", "resnet18", "--input-size", "32", "--out", out)
    assert status == 0, error
    assert "62 tensors" in printed
    saved = load_file(out)
    assert len(saved) == 62
    assert saved["fc.weight"].shape == (10, 512)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_predict_refuses_names_of_other_files(run: Run, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    if name.endswith(".safetensors"):
        out.mkdir()
    status, printed, error = run("predict", "resnet18", "--out", out)
    assert status == 2
    assert f"--out: got {out}" in error
    assert ".safetensors" in error.replace(str(out), "")
    assert not printed


def test_module_and_command_are_the_same() -> None:
    command = [sys.executable, "-m", "ghn_fast", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("train", "evaluate", "predict", "demo", "deepnets"):
        assert name in done.stdout


def commands() -> list[tuple[str, ...]]:
    """The words of every command."""
    found: list[tuple[str, ...]] = []

    def walk(group: Any, words: tuple[str, ...]) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, (*words, name))
            else:
                found.append((*words, name))

    walk(typer.main.get_command(cli.app), ())
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_can_print_json(run: Run, words: tuple[str, ...]) -> None:
    status, printed, error = run(*words, "--help")
    assert status == 0, error
    assert "--json" in printed


def test_json_is_all_that_is_printed(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    generate = ("--split", "val", "--count", "3", "--out", tmp_path / "nets")
    for words, entry, value in (
        (("predict", "deepnets:test:1", "--out", out), "out", str(out)),
        (("draw", "deepnets:test:1", "--out", tmp_path / "x.svg"), "model", "deepnets:test:1"),
        (("doctor",), "ghn_fast", ghn_fast.__version__),
        (("models", "deepnets:"), "beginning", "deepnets:"),
        (("deepnets", "generate", *generate), "written", 3),
        (("deepnets", "info", tmp_path / "nets"), "folder", str(tmp_path / "nets")),
    ):
        status, printed, error = run(*words, "--json")
        assert status == 0, error
        assert json.loads(printed)[entry] == value
    arguments = ("--ckpt", "ghn2-digits", "--limit", "1", "--out", tmp_path / "results")
    status, printed, error = run("evaluate", *arguments, "--json")
    assert status == 0, error
    result = json.loads(printed)
    assert result["predicted"]["count"] == 1
    assert result["predicted"]["standard_error"] is None  # one value has none
    assert [Path(path).is_file() for path in result["written"]] == [True, True]
    small = ("--set", "image_size=16", "--set", "max_channels=32", "--set", "max_nodes=120")
    arguments = (*TRAIN, *small, "--steps", "1", "--out", tmp_path / "run", "--json")
    status, printed, error = run(*arguments)
    assert status == 0, error
    assert json.loads(printed) == {
        "step": 1,
        "total": 1,
        "interrupted": False,
        "checkpoint": str(tmp_path / "run" / "checkpoints" / "step-00000001"),
    }


def test_a_mistake_prints_no_json(run: Run) -> None:
    status, printed, error = run("predict", "resnte50", "--json")
    assert status == 2
    assert printed == ""
    assert "resnet50" in error


def test_predict_writes_where_parameters_come_from(run: Run, tmp_path: Path) -> None:
    from safetensors import safe_open

    out = tmp_path / "net.safetensors"
    status, printed, error = run("predict", "deepnets:test:1", "--out", out, "--num-classes", "7")
    assert status == 0, error
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert metadata["model"] == "deepnets:test:1"
    assert metadata["hypernetwork"] == "ghn2-digits"
    assert metadata["generator"] == f"ghn_fast {ghn_fast.__version__}"
    report = json.loads(metadata["report"])
    assert set(report["predicted"]) | set(report["skipped"]) == set(shapes)
    config = ghn_fast.GHNConfig.from_dict(json.loads(metadata["hypernetwork_config"]))
    assert config == ghn_fast.from_pretrained("ghn2-digits").config
    for name in report["skipped"]:
        assert name in printed


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"ghn-fast {ghn_fast.__version__}\n", "")


def test_log_levels(run: Run) -> None:
    status, _, error = run("--log-level", "loud", "doctor")
    assert status == 2
    assert "needs one of debug, info, warning, error" in error
    status, _, error = run("--log-level", "info", "predict", "deepnets:test:0")
    assert status == 0, error
    assert "ghn-fast: info: " in error


def test_no_color() -> None:
    command = [sys.executable, "-m", "ghn_fast", "--help"]
    for colour in ("NO_COLOR", "FORCE_COLOR"):
        environment = {k: v for k, v in os.environ.items() if not k.endswith("_COLOR")}
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**environment, "TERM": "xterm-256color", colour: "1"},
        )
        coloured = re.search(r"\x1b\[[0-9;]*3[0-9]m", done.stdout) is not None
        assert coloured == (colour == "FORCE_COLOR")


def test_the_shell_completes_commands_and_networks() -> None:
    for words, expected in (("ghn-fast pre", "predict"), ("ghn-fast predict deepn", "deepnets:")):
        environment = {
            "_GHN_FAST_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-m", "ghn_fast"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
        )
        assert expected in done.stdout.split(), done.stderr


def test_publish_into_a_folder(run: Run, tmp_path: Path) -> None:
    status, printed, error = run("publish", "ghn2-digits", "--out", tmp_path / "out")
    assert status == 0, error
    assert f"written: {tmp_path / 'out'}" in printed
    assert ghn_fast.from_pretrained(tmp_path / "out").config.num_classes == 10
    status, _, error = run("publish", "ghn2-digits")
    assert status == 2
    assert "--repo, --out: got neither" in error
