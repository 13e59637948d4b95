"""The idiom of the Hub: the same names and signatures, and cards that claim what was measured."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml

import ghn_fast
from ghn_fast.hypernet.model_card import RunResults, model_card, read_results

SMALL = ghn_fast.GHNConfig(max_shape=(8, 8, 3, 3), hid=8, num_classes=4)
REPORT = {
    "dataset": "digits", "images": "test", "num_images": 359, "split": "deep",
    "batch_norm": "batch statistics", "records": [],
    "predicted": {"mean": 91.25, "standard_error": 0.5, "best": 95.0, "worst": 80, "count": 10},
    "random": {"mean": 9.5, "standard_error": None, "best": 12.0, "worst": 3.0, "count": 1},
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files that a training run leaves."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps({"dataset": "digits", "lr": 0.002, "init": None}))
    lines = [{"step": step, "loss": 1.0 / step, "top1": 50.0} for step in range(1, 5)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 5, "lo')
    (folder / "evaluations.jsonl").write_text('{"step": 4, "top1": 81.5}\n')
    return folder


def parts(card: str) -> tuple[dict[str, Any], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_methods_take_what_those_of_the_hub_take() -> None:
    for name in ("from_pretrained", "save_pretrained", "push_to_hub"):
        ours = inspect.signature(getattr(ghn_fast.GHN, name)).parameters
        theirs = inspect.signature(getattr(huggingface_hub.PyTorchModelHubMixin, name)).parameters
        wanted = {
            word
            for word, parameter in theirs.items()
            if parameter.kind is not parameter.VAR_KEYWORD
        }
        # Our configuration is part of the hypernetwork, and a push replaces whole files.
        wanted -= {"config", "allow_patterns", "ignore_patterns", "delete_patterns"}
        assert wanted <= set(ours), name


def test_round_trip(tmp_path: Path) -> None:
    ghn = ghn_fast.GHN(SMALL)
    folder = ghn.save_pretrained(tmp_path / "mine")
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    loaded = ghn_fast.GHN.from_pretrained(folder, revision="main")
    for name, value in ghn.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    meta, body = parts((folder / "README.md").read_text())
    assert meta["library_name"] == "ghn_fast"
    assert 'from_pretrained("mine")' in body
    assert "Accuracy" not in body  # nothing was measured
    assert "| `hid` | 8 |" in body


def test_a_card_says_what_the_run_wrote(run: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "deep.json").write_text(json.dumps(REPORT))
    (tmp_path / "evaluation" / "other.json").write_text("[1]")
    results = read_results(run, [tmp_path / "evaluation"])
    assert results.metrics["step"] == 4
    # compared by hand: the mean of four numbers.
    assert results.metrics["loss"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    card = model_card(SMALL, results, name="me/mine", parameters=1_500_000, license="mit")
    meta, body = parts(card)
    assert meta["license"] == "mit"
    index = meta["model-index"][0]["results"][0]
    assert index["metrics"] == [{"type": "accuracy", "name": "top-1 %", "value": 91.25}]
    assert "| deep | 359 test images of digits | 10 | 91.2 ± 0.5 | 95 | 9.5 |" in body
    assert "step 4: top1 81.5" in body
    assert "| `lr` | 0.002 |" in body
    assert "`init`" not in body
    assert "1.50 M parameters" in body


def test_a_card_without_results_claims_nothing() -> None:
    _, body = parts(model_card(SMALL, RunResults()))
    assert "Accuracy" not in body
    assert "Training" not in body


def test_files_that_are_no_reports_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("{}")
    good = tmp_path / "good.json"
    good.write_text('{"records": [], "predicted": null}')
    for files in ([file], [good, file]):
        with pytest.raises(ValueError, match=r"x\.json: has nothing, needs 'records' and 'predic"):
            read_results(None, files)
    with pytest.raises(ValueError, match="not a file of JSON"):
        read_results(None, [tmp_path / "none.json"])


class FakeApi:
    """Takes what is pushed."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012 - what the test looks at
    files: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, token: str | None = None) -> None:
        self.calls.append(("token", {"token": token}))

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create", options))
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("branch", options))

    def upload_folder(self, *, folder_path: str, **options: Any) -> str:
        self.calls.append(("upload", options))
        for path in Path(folder_path).iterdir():
            self.files[path.name] = path.read_text(errors="replace")
        return "https://huggingface.co/me/mine/commit/1"


def test_push(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeApi, "calls", [])
    monkeypatch.setattr(FakeApi, "files", {})
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    ghn = ghn_fast.GHN(SMALL)
    address = ghn.push_to_hub(
        "me/mine", token="t", branch="next", private=True, model_card_kwargs={"run": run}
    )
    assert address.endswith("/commit/1")
    assert dict(FakeApi.calls)["token"] == {"token": "t"}
    assert dict(FakeApi.calls)["create"] == {"private": True, "exist_ok": True}
    upload = dict(FakeApi.calls)["upload"]
    assert (upload["repo_id"], upload["revision"]) == ("me/mine", "next")
    assert sorted(FakeApi.files) == ["README.md", "config.json", "model.safetensors"]
    assert "0.002" in FakeApi.files["README.md"]
    with pytest.raises(ValueError, match="needs owner/name"):
        ghn.push_to_hub("mine")


def test_accuracies_go_along(tmp_path: Path) -> None:
    text = json.dumps({"split": "val", "seed": 0, "dataset": "digits", "top1": [50.0]})
    first = ghn_fast.save_pretrained(ghn_fast.GHN(SMALL), tmp_path / "first")
    (first / "accuracies.json").write_text(text)
    ghn = ghn_fast.from_pretrained(first)
    for _ in range(2):  # also into the folder that it came from
        second = ghn_fast.save_pretrained(ghn, tmp_path / "second")
        assert (second / "accuracies.json").read_text() == text
        ghn = ghn_fast.from_pretrained(second)


def test_accuracies_of_another_hypernetwork_do_not_stay(tmp_path: Path) -> None:
    first = ghn_fast.GHN(SMALL)
    ghn_fast.save_pretrained(first, tmp_path)
    (tmp_path / "accuracies.json").write_text("{}")
    ghn_fast.save_pretrained(first, tmp_path)  # it is theirs
    assert (tmp_path / "accuracies.json").is_file()
    ghn_fast.save_pretrained(ghn_fast.GHN(SMALL), tmp_path)
    assert ghn_fast.from_pretrained(tmp_path).accuracies is None


def test_the_hub_is_told_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ghn_fast.save_pretrained(ghn_fast.GHN(SMALL), tmp_path / "there")
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        if options["revision"] != "v1":
            raise OSError("no such revision")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = ghn_fast.GHN.from_pretrained("me/mine", revision="v1", cache_dir=tmp_path, token="t")
    assert loaded.config == SMALL
    assert asked["name"] == "me/mine"
    assert (asked["revision"], asked["cache_dir"], asked["token"]) == ("v1", tmp_path, "t")
    with pytest.raises(FileNotFoundError, match=r"revision='v2'.*no such revision") as error:
        ghn_fast.GHN.from_pretrained("me/mine", revision="v2", token="secret")
    assert "secret" not in str(error.value)
