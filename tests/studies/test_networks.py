"""Networks by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ghn_fast.deepnets import DeepNets, SampledNets
from ghn_fast.studies.networks import Network, find_networks, names_of


def test_each_kind_of_name(tmp_path: Path) -> None:
    config = SampledNets("search", 3, 0)[2].config
    assert config is not None
    (tmp_path / "best.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "cells.json").write_text(json.dumps(config.genotype.to_dict()))
    (tmp_path / "mine.py").write_text(
        "import torch\n\ndef tiny(num_classes, image_size):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * image_size ** 2,"
        " num_classes))\n"
    )
    names = ["resnet18", "vit", "darts", "deepnets:val:2-4", "deepnets:predefined:0"]
    names += [str(tmp_path / name) for name in ("best.json", "cells.json", "mine.py:tiny")]
    found = find_networks(names)
    assert names_of(found) == [
        *("resnet18", "vit", "darts", "val-2", "val-3", "val-4", "resnet50"),
        *("best", "cells", "mine.tiny"),
    ]
    assert found[3].config == SampledNets("val", 3, 0)[2].config
    assert found[7].config == config
    model = found[9].build(7, 16)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    assert found[9].graph(7, 16).num_nodes > 0
    wide = DeepNets(None, "predefined")[1].config
    assert found[1].config == wide
    changed = find_networks(["darts", "resnet18"], channels=8, cells=4)
    assert (changed[0].config.C, changed[0].config.n_cells) == (8, 4)  # type: ignore[union-attr]


def test_a_network_that_cannot_be_built_without_values_has_a_graph() -> None:
    def build(num_classes: int, image_size: int) -> nn.Module:
        width = int(torch.tensor(8.0) / 2)  # as RegNet of torchvision finds its widths
        layers = nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(width, num_classes))

    graph = Network("widths", factory=build).graph(7, 16)
    assert [target.shape for target in graph.targets] == [(4, 3, 3, 3), (4,), (7, 4), (7,)]


def test_builds_depend_on_the_seed_alone() -> None:
    network = find_networks(["deepnets:test:1"], channels=8)[0]
    torch.manual_seed(1)
    first = torch.cat([p.flatten() for p in network.build(10, 16).parameters()])
    torch.manual_seed(2)
    again = torch.cat([p.flatten() for p in network.build(10, 16).parameters()])
    other = torch.cat([p.flatten() for p in network.build(10, 16, seed=1).parameters()])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_names_are_checked(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"normal": 3}')
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "empty.py").write_text("")
    for names, message in (
        ([], "got none"),
        (["resnet5000"], "the nearest are resnet50"),
        (["deepnets:huge:1"], "needs deepnets:SPLIT:INDEX"),
        (["deepnets:val:5-2"], "not above the last"),
        (["deepnets:predefined:7"], "has 2 architectures"),
        (["resnet18", "resnet18"], "comes twice"),
        ([str(tmp_path / "bad.json")], "bad.json"),
        ([str(tmp_path / "no.json")], "no valid JSON"),
        ([str(tmp_path / "empty.py:f")], "has no function"),
    ):
        with pytest.raises(ValueError, match=message):
            find_networks(names)
    with pytest.raises(FileNotFoundError, match="no such file"):
        find_networks([str(tmp_path / "gone.py:f")])
    with pytest.raises(ValueError, match=r"needs a torch\.nn\.Module"):
        Network("x", factory=lambda classes, size: None).build(2, 8)  # type: ignore[arg-type, return-value]


def test_what_the_room_offers_is_there() -> None:
    from ghn_fast import studies

    assert {"train_network", "finetune_networks", "search_architectures"} <= set(studies.__all__)
    for name in studies.__all__:
        assert callable(getattr(studies, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        studies.nothing  # noqa: B018
