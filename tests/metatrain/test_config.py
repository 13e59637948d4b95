"""Settings: their sections, their names, their limits."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from ghn_fast.metatrain import TrainConfig, read_config
from ghn_fast.metatrain.config import PLACES, DataConfig, parse_settings
from tolerances import assert_close

FLAT = Path(__file__).with_name("flat_configs")
RECIPES = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta_batch": 0}, "meta_batch: got 0"),
        ({"lr": -1.0}, "lr: got -1.0"),
        ({"lr": float("nan")}, "lr: got nan"),
        ({"schedule": "linear"}, "schedule: got 'linear', needs one of multistep, cosine"),
        ({"steps": 3, "epochs": 2}, "got both"),
        ({"max_channels": 8}, "min_channels"),
        (
            {"precision": "fp8"},
            "precision: got 'fp8', needs one of float32, tf32, bf16, fp16, auto",
        ),
        ({"hypernetwork": "no"}, "hypernetwork: got 'no', needs one of sharded, replicated"),
        ({"pool_size": 4}, "pool_size: got 4, needs 0 or at least the meta-batch of 8"),
        ({"max_skip_rate": 1.5}, r"max_skip_rate: got 1\.5"),
        ({"checkpoint_minutes": 0}, r"checkpoint_minutes: got 0\.0, needs a positive"),
        ({"parallel_networks": 0}, "parallel_networks: got 0"),
        ({"learning_rate": 1}, "unknown setting 'learning_rate'"),
        ({"batch_size": "many"}, "batch_size: got 'many', needs an integer"),
        ({"batch_size": True}, "batch_size: got True, needs an integer"),
        ({"normalize": "false"}, "normalize: got 'false', needs true or false"),
        ({"milestones": 0.5}, "milestones: got 0.5, needs a list"),
        ({"steps": 1.5}, r"steps: got 1\.5, needs an integer or nothing"),
        ({"dataset": 5}, "dataset: got 5, needs a text"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(changes)


def test_learning_rate() -> None:
    config = TrainConfig(lr=1.0)
    rates = [config.learning_rate(step, 300) for step in (0, 199, 200, 250, 299)]
    assert_close(rates, [1.0, 1.0, 0.1, 0.01, 0.01])
    cosine = TrainConfig(lr=1.0, schedule="cosine", warmup_steps=10)
    assert_close(cosine.learning_rate(0, 100), 0.1)
    assert_close(cosine.learning_rate(50, 100), 0.5)
    # compared by hand: a bound, for the rate has to end near zero.
    assert cosine.learning_rate(99, 100) < 1e-3


def test_epochs_count_passes_over_the_images() -> None:
    assert TrainConfig(epochs=3).total_steps(704) == 2112
    assert TrainConfig().total_steps(704) == 300 * 704
    assert TrainConfig(steps=7).total_steps(704) == 7


def test_config_files(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("hid: 16\nmilestones: [0.5]\n")
    assert TrainConfig.from_dict(read_config(path)).optimizer.milestones == (0.5,)
    path.write_text("lr: 1e-3\nweight_decay: 0\n")
    assert TrainConfig.from_dict(read_config(path)).optimizer.lr == 1e-3
    path.write_text("")
    assert read_config(path) == {}
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="needs settings as 'name: value'"):
        read_config(path)
    with pytest.raises(FileNotFoundError, match="no such configuration file"):
        read_config(tmp_path / "none.yaml")


def test_recipes_are_those_of_the_files_without_sections() -> None:
    recipes = sorted(RECIPES.glob("*.yaml"))
    assert [path.name for path in recipes] == [path.name for path in sorted(FLAT.glob("*.yaml"))]
    for recipe in recipes:
        config = TrainConfig.from_dict(read_config(recipe))
        assert config == TrainConfig.from_dict(read_config(FLAT / recipe.name))
        assert "\n  " in recipe.read_text()
        assert not any(line.startswith("  ") for line in (FLAT / recipe.name).open())


def test_every_setting_has_one_name() -> None:
    own = [item for item in fields(TrainConfig) if not is_dataclass(item.default)]
    inside = [
        f
        for item in fields(TrainConfig)
        if is_dataclass(item.default)
        for f in fields(item.default)
    ]
    # Number of classes and largest block of the hypernetwork's own configuration are no settings.
    assert len(PLACES) == len(own) + len(inside) - 2
    config = TrainConfig()
    assert set(config.to_dict()) == set(PLACES)
    json.dumps(config.to_dict())
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_sections_and_names_side_by_side_are_the_same() -> None:
    config = TrainConfig(lr=0.1, hid=8, propagation_steps=2, steps=3, max_shape=(8, 8, 3, 3))
    assert config == TrainConfig.from_dict(
        {
            "optimizer": {"lr": 0.1, "steps": 3},
            "ghn": {"hid": 8, "propagation_steps": 2, "max_shape": [8, 8, 3, 3]},
        }
    )
    assert (config.ghn.steps, config.optimizer.steps) == (2, 3)
    assert config.ghn_config(5, 32).max_shape == (8, 8, 3, 3)
    assert TrainConfig(hid=8).ghn_config(5, 32).max_shape == (16, 16, 11, 11)
    assert TrainConfig(hid=8).ghn_config(5, 64).max_shape == (16, 16, 16, 16)
    assert TrainConfig(hid=8).ghn_config(5, 64).num_classes == 5
    assert TrainConfig(dataset="cifar10").data == DataConfig(dataset="cifar10")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"lr": 1.0}, "lr": 2.0}, "lr: got it twice"),
        ({"optimizer": {"dataset": "digits"}}, "optimizer: unknown setting 'dataset'"),
        ({"ghn": {"steps": 2}}, "ghn: unknown setting 'steps'"),
        ({"ghn": {"num_classes": 2}}, "ghn: unknown setting 'num_classes'"),
        ({"optimizer": 5}, "unknown setting 'optimizer'"),
        ({"optimizer": {"lr": "fast"}}, "lr: got 'fast', needs a number"),
        ({"hid": 7}, "hid: got 7"),
    ],
)
def test_mistakes_in_sections(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(values)


def test_former_names_are_known() -> None:
    assert TrainConfig.from_dict({"graphs": 3}).execution.cuda_graphs == 3
    assert TrainConfig(graphs=3) == TrainConfig(cuda_graphs=3)
    with pytest.raises(TypeError, match="'learning_rate', which is no setting"):
        TrainConfig(learning_rate=1.0)


def test_what_may_change_when_a_run_is_continued() -> None:
    changing = {name for name, place in PLACES.items() if place.may_change}
    assert changing == {
        *("steps", "epochs", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints"),
        *("max_skip_rate", "device", "data_root", "workers", "graph_workers"),
        *("parallel_networks", "cuda_graphs", "balance", "hypernetwork", "hypernetwork_threads"),
        "trackers",
    }


def test_settings_as_text() -> None:
    found = parse_settings(["lr=1e-3", "milestones=[0.5]", "graphs=2", "channels_last=false"])
    assert found == {"lr": "1e-3", "milestones": [0.5], "cuda_graphs": 2, "channels_last": False}
    assert TrainConfig.from_dict(found).optimizer.lr == 1e-3
    for text in ("lr", "a=[1"):
        with pytest.raises(ValueError, match=r"setting: got 'lr'|a: not valid YAML"):
            parse_settings([text])
    with pytest.raises(ValueError, match="setting: got 'lr=2', needs it once"):
        parse_settings(["lr=1", "lr=2"])


def test_the_page_lists_every_recipe_and_setting() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "training.md").read_text()
    recipes, settings = (
        page.partition(f"| {head} |")[2].partition("\n\n")[0] for head in ("recipe", "section")
    )
    named = set(re.findall(r"`([\w-]+\.yaml)`", recipes))
    assert named == {path.name for path in (root / "configs").glob("*.yaml")}
    listed = set(re.findall(r"`(\w+)`", settings))
    wanted = set(TrainConfig().to_dict())
    assert wanted <= listed, sorted(wanted - listed)
