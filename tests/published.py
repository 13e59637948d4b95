"""The published numbers of GHN-3 and LoGAH: weights, networks and how they are compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import ghn_fast
from ghn_fast.graph import ArchGraph
from graphs import op_histogram
from networks import SmallCNN
from tolerances import assert_close


def weights_by_recipe(config: dict[str, Any]) -> dict[str, Tensor]:
    """Weights that a fixture describes by a recipe instead of storing them."""
    state = {}
    for name, (shape, scale, offset) in config["recipe"].items():
        digest = hashlib.sha256(f"{config['seed_of_weights']}/{name}".encode()).digest()
        random = np.random.RandomState(int.from_bytes(digest[:4], "little"))
        values = random.standard_normal(shape) * scale + offset
        state[name] = torch.from_numpy(values.astype(np.float16))
    return state


def hypernetwork(folder: Path, name: str, scratch: Path) -> ghn_fast.GHN:
    """The hypernetwork of a fixture."""
    path = folder / f"{name}.pt"
    if not path.is_file():
        text = (folder / f"{name}.config.json").read_text()
        config = json.loads(text)
        path = scratch / f"{name}.pt"
        torch.save({"state_dict": weights_by_recipe(config), "config": config["config"]}, path)
        (scratch / f"{name}.config.json").write_text(text)
    return ghn_fast.from_pretrained(path)


def network(name: str, classes: int) -> nn.Module:
    """The network of a fixture, in evaluation mode."""
    if name == "SmallCNN":
        return SmallCNN(classes).eval()
    if name.startswith("vit:"):
        patch, layers, heads, width, image = map(int, name[4:].split(","))
        model = torchvision.models.VisionTransformer(
            image, patch, layers, heads, width, 4 * width, num_classes=classes
        )
        model.input_shape = (3, image, image)
        return model.eval()
    if name.startswith("gpt2:"):
        return gpt2(*map(int, name[5:].split(",")))
    options = {"aux_logits": False, "init_weights": False}
    chosen = options if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, num_classes=classes, **chosen)
    if name == "inception_v3":
        model.input_shape = (3, 299, 299)
    return model.eval()


def gpt2(width: int, layers: int, heads: int, vocabulary: int, tied: int) -> nn.Module:
    """A small GPT-2; the test is skipped where transformers is not there."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        tie_word_embeddings=bool(tied),
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def check_sums(value: Tensor, signed: float, absolute: float, name: str) -> None:
    """Compare the sum of a predicted parameter and the sum of its magnitudes with published ones.

    The magnitudes say how large the terms are that cancel in the signed sum.
    """
    value = value.detach().double()
    for what, found, published in (
        ("sum", value.sum(), signed),
        ("sum of magnitudes", value.abs().sum(), absolute),
    ):
        assert_close(
            found,
            torch.tensor(published, dtype=torch.float64),
            context="ghn",
            dtype=torch.float32,
            scale=absolute,
            name=f"{name}: {what}",
        )


def check_graph(graph: ArchGraph, published: dict[str, Any]) -> None:
    """Compare what a fixture says of a graph."""
    assert graph.num_nodes == published["num_nodes"]
    assert graph.num_edges == published["num_edges"]
    assert op_histogram(graph) == published["op_histogram"]
    distances = torch.bincount(graph.edges[:, 2]).tolist()
    assert distances[1:] == [
        published["distance_histogram"].get(str(d), 0) for d in range(1, len(distances))
    ]
    assert [target.name for target in graph.targets if target.head] == published["heads"]


def check_parameters(model: nn.Module, predicted: list[str], published: dict[str, Any]) -> None:
    """Compare predicted parameters with what a fixture says of them."""
    params = dict(model.named_parameters())
    expected = published["parameters"]
    assert set(params) == set(expected)
    assert set(predicted) == {name for name, p in expected.items() if p["predicted"]}
    for name, numbers in expected.items():
        if not numbers["predicted"]:
            continue
        value = params[name].detach()
        assert list(value.shape) == numbers["shape"], name
        rest = value.flatten()[numbers.get("first", 0) :]
        check_sums(rest, numbers["sum"], numbers["abs_sum"], name)
        at, values = torch.tensor(numbers["at"]), torch.tensor(numbers["values"])
        fixed = at >= numbers.get("first", 0)
        scale = float(value.abs().mean())
        assert_close(
            value.flatten()[at[fixed]], values[fixed], context="ghn", scale=scale, name=name
        )


def check(path: Path, scratch: Path) -> None:
    """Compare a prediction with a fixture: graph, embeddings, parameters."""
    published = json.loads(path.read_text())
    ghn = hypernetwork(path.parent, published["config"], scratch)
    model = network(published["model"], ghn.config.num_classes)
    shape = getattr(model, "input_shape", None)
    inputs = {"input_ids": torch.arange(3)[None]} if ghn.config.language else None
    graph = ghn_fast.capture(
        model,
        shape,
        ghn.config.virtual_edges,
        example_inputs=inputs,
        rules=ghn.config.graph_rules,
    )
    check_graph(graph, published)
    embedded = ghn.embed(graph)
    for name, value in (
        ("embedding_mean", embedded.mean(0)),
        ("embedding_first", embedded[0]),
        ("embedding_last", embedded[-1]),
    ):
        scale = float(embedded.abs().mean())
        assert_close(value, torch.tensor(published[name]), context="ghn", scale=scale, name=name)
    report = ghn.predict(model)
    check_parameters(model, report.predicted, published)
