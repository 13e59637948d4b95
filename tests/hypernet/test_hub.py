"""Files of the Hugging Face Hub: what is asked for, and what is said where there is nothing."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import ghn_fast
from ghn_fast.hypernet import hub
from ghn_fast.hypernet.published import inferred_config

# Our names of a small hypernetwork to those of the published code.
CONFIG = ghn_fast.GHNConfig(
    max_shape=(8, 8, 11, 11),
    num_classes=10,
    hid=16,
    propagator="graphormer",
    layers=2,
    heads=4,
    rules="ghn3",
    window="middle",
)
NAMES = {
    "encoder.op.weight": "embed.weight",
    "encoder.kernel.weight": "shape_enc.embed_spatial.weight",
    "encoder.channel.weight": "shape_enc.embed_channel.weight",
    "propagator.in_degree.weight": "centrality_embed_in.weight",
    "propagator.out_degree.weight": "centrality_embed_out.weight",
    "propagator.input_distance.weight": "input_dist_embed.weight",
    "propagator.distance.weight": "gnn.0.attn.edge_embed.embed.weight",
    "propagator.pair_hidden": "gnn.0.attn.proj_e.0",
    "propagator.pair_bias": "gnn.0.attn.proj_e.2",
    "norm": "ln",
    "blocks.expand": "decoder.fc.0",
    "blocks.hidden": "decoder.conv.0",
    "blocks.output": "decoder.conv.2",
    "blocks.head": "decoder.class_layer_predictor.1",
    "vectors.layers.0": "decoder_1d.fc.0",
    "vectors.layers.2": "decoder_1d.fc.2",
    "vectors.head": "bias_class.1",
    **{
        f"propagator.layers.{layer}.{ours}": f"gnn.{layer}.{theirs}"
        for layer in range(2)
        for ours, theirs in {
            "attention_norm": "ln1",
            "qkv": "attn.to_qkv",
            "out": "attn.to_out.0",
            "mlp_norm": "ln2",
            "mlp_in": "ff.net.0",
            "mlp_out": "ff.net.3",
        }.items()
    },
}


def published(ghn: ghn_fast.GHN) -> dict[str, torch.Tensor]:
    """The weights under published names."""
    state = {}
    for name, value in ghn.state_dict().items():
        stem, _, last = name.rpartition(".")
        state[NAMES.get(name) or f"{NAMES[stem]}.{last}"] = value.clone()
    return state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file as the Hub has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pickle.dumps(published(ghn_fast.GHN(CONFIG)))
    (tmp_path / "ghn3small.pt").write_bytes(data)
    return tmp_path


def offline(*_: Any, **__: Any) -> str:
    raise LocalEntryNotFoundError("Cannot find the requested files in the disk cache\nand more")


def test_a_file_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    ghn = ghn_fast.from_pretrained("SamsungSAILMontreal/ghn3", filename="ghn3small.pt")
    assert asked == [("SamsungSAILMontreal/ghn3", "ghn3small.pt")]
    assert ghn.config == CONFIG
    local = ghn_fast.from_pretrained(folder, filename="ghn3small.pt")
    for name, value in ghn.state_dict().items():
        assert torch.equal(value, local.state_dict()[name]), name


def test_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for options, wanted in (({"filename": "ghn3xlm16.pt"}, "ghn3xlm16.pt"), ({}, "config.json")):
        with pytest.raises(FileNotFoundError, match="could not be had") as error:
            ghn_fast.from_pretrained("SamsungSAILMontreal/ghn3", **options)
        text = str(error.value)
        assert "\n" not in text
        assert f"download {wanted}" in text
        assert "https://huggingface.co/SamsungSAILMontreal/ghn3" in text
        assert "give its path" in text


def test_a_wrong_file_name_lists_what_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    def not_there(*_: Any, **__: Any) -> str:
        raise EntryNotFoundError("404")

    def files(repository: str) -> list[str]:
        return [".gitattributes", "README.md", "ghn3tm8.pt", "ghn3xlm16.pt"]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", not_there)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", files)
    with pytest.raises(FileNotFoundError, match=r"no 'ghn3\.pt'; its files are README.md, ghn3tm8"):
        ghn_fast.from_pretrained("SamsungSAILMontreal/ghn3", filename="ghn3.pt")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder / "none"))
    with pytest.raises(FileNotFoundError, match=r"choose one .* filename=\.\.\.: README.md, ghn3t"):
        ghn_fast.from_pretrained("SamsungSAILMontreal/ghn3")
    with pytest.raises(FileNotFoundError, match=r"holds no 'x'; its files are \['ghn3small.pt'\]"):
        ghn_fast.from_pretrained(folder, filename="x")
    with pytest.raises(FileNotFoundError, match="needs a folder or owner/name"):
        ghn_fast.from_pretrained("a file", filename="x")
    assert not hub.is_name("a/b/c")


def test_what_a_configuration_is_inferred_from() -> None:
    state = published(ghn_fast.GHN(CONFIG))
    assert inferred_config(state) == CONFIG
    for name, message in (
        ("decoder.conv.2.weight", "'decoder.conv.2.weight' is missing"),
        ("gnn.0.attn.proj_e.2.weight", "no graph neural network that is known"),
    ):
        without = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match=message):
            inferred_config(without)
    state["decoder.conv.2.weight"] = torch.zeros(63, 128)
    with pytest.raises(ValueError, match="got 63 rows, needs the square of a number"):
        inferred_config(state)


def test_the_cutoff_beside_a_file(folder: Path) -> None:
    beside = folder / "ghn3small.config.json"
    beside.write_text('{"virtual_edges": 7}')
    assert ghn_fast.from_pretrained(folder / "ghn3small.pt").config.virtual_edges == 7
    beside.write_text('{"virtual_edges": 0}')
    with pytest.raises(ValueError, match="virtual_edges: got 0, needs at least 1"):
        ghn_fast.from_pretrained(folder / "ghn3small.pt")
    beside.write_text("{")
    with pytest.raises(ValueError, match=r"ghn3small\.config\.json: not valid JSON"):
        ghn_fast.from_pretrained(folder / "ghn3small.pt")


def test_conversion(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from typer.testing import CliRunner

    from ghn_fast import cli

    out = tmp_path_factory.mktemp("converted") / "ghn3"
    done = CliRunner().invoke(cli.app, ["convert", str(folder / "ghn3small.pt"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    ours, theirs = ghn_fast.from_pretrained(out), ghn_fast.from_pretrained(folder / "ghn3small.pt")
    assert ours.config == theirs.config
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
