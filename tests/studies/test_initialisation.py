"""Where networks start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ghn_fast
from ghn_fast.studies.initialisation import (
    BLOCK,
    add_noise,
    initialise,
    orthogonalise,
    weight_tensors,
)
from ghn_fast.studies.networks import Network, find_networks
from tolerances import assert_close


@pytest.fixture(scope="module")
def ghn() -> ghn_fast.GHN:
    torch.manual_seed(0)
    return ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5)))


def test_he_has_the_variance_of_its_fan_in(network: Network) -> None:
    model = initialise(network, "he", 4, 16)
    weights = weight_tensors(model)
    assert [name for name, _ in weights] == ["0.weight", "4.weight", "10.weight"]
    # compared by hand: the variance of 5,760 random draws.
    assert abs(float(weights[1][1].detach().var()) * 72 - 2) < 0.2
    again = initialise(network, "he", 4, 16)
    assert torch.equal(weights[0][1], weight_tensors(again)[0][1])


def test_orthogonal_rows(network: Network) -> None:
    weight = weight_tensors(initialise(network, "orthogonal", 4, 16))[1][1].flatten(1)
    gram = weight.T @ weight if len(weight) > weight.shape[1] else weight @ weight.T
    assert_close(gram, torch.eye(len(gram)) * gram[0, 0], scale=float(gram[0, 0].detach()))


def test_predicted_parameters_are_those_of_the_hypernetwork(ghn: ghn_fast.GHN) -> None:
    network = find_networks(["deepnets:val:0"], channels=16)[0]
    model = initialise(network, "predicted", 10, 16, ghn=ghn)
    other = network.build(10, 16)
    ghn(other)
    for (name, one), (_, two) in zip(
        model.named_parameters(), other.named_parameters(), strict=True
    ):
        assert_close(one, two, name=name, context="ghn")
    assert any(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_another_number_of_classes_keeps_the_head(ghn: ghn_fast.GHN, network: Network) -> None:
    model = initialise(network, "predicted", 4, 16, ghn=ghn)
    plain = network.build(4, 16)
    assert torch.equal(model[10].weight, plain[10].weight)
    assert not torch.equal(model[4].weight, plain[4].weight)
    with pytest.raises(ValueError, match="classifiers of 10 classes, the data has 4"):
        initialise(network, "predicted", 4, 16, ghn=ghn, head=True)


def test_noise_and_orthogonal_factors_beyond_the_first_block(network: Network) -> None:
    model = network.build(4, 16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    add_noise(model, 0.5, torch.Generator().manual_seed(0))
    after = dict(model.named_parameters())
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["10.weight"], before["10.weight"])
    assert torch.equal(after["5.weight"][:BLOCK], before["5.weight"][:BLOCK])
    assert not torch.equal(after["5.weight"][BLOCK:], before["5.weight"][BLOCK:])
    assert orthogonalise(model, 0, torch.Generator().manual_seed(0)) == ["4.weight"]
    matrix = model[4].weight.flatten(1)
    assert_close(matrix.T @ matrix, torch.eye(72), scale=1.0)
    # What is orthogonal already stays, but for the noise.
    kept = matrix.detach().clone()
    orthogonalise(model, 1, torch.Generator().manual_seed(1))
    # compared by hand: the noise is a thousandth of the weight.
    assert float((model[4].weight.detach().flatten(1) - kept).norm() / kept.norm()) < 0.01
    with pytest.raises(ValueError, match="got 2, but there are 2 weights"):
        orthogonalise(model, 2, torch.Generator())


def test_files_of_parameters(network: Network, tmp_path: Path) -> None:
    source = network.build(7, 16, seed=5)
    path = tmp_path / "given.safetensors"
    save_file(source.state_dict(), path)
    torch.save(source.state_dict(), tmp_path / "given.pt")
    for file in (path, tmp_path / "given.pt"):
        model = initialise(network, str(file), 4, 16)
        assert torch.equal(model[4].weight, source[4].weight)
        assert model[10].weight.shape == (4, 320)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, message in (("bad", "cannot be read"), ("other", "has 0 of the network's 8")):
        with pytest.raises(ValueError, match=message):
            initialise(network, str(tmp_path / f"{name}.safetensors"), 4, 16)
    with pytest.raises(FileNotFoundError, match="no such file"):
        initialise(network, str(tmp_path / "gone.safetensors"), 4, 16)


def test_arguments_are_checked(network: Network) -> None:
    for values, message in (
        ({"how": "zeros"}, "needs one of random, he"),
        ({"how": "predicted"}, "needs a hypernetwork"),
        ({"how": "random", "noise": -1.0}, "noise: got -1.0"),
        ({"how": "random", "orthogonal_from": -1}, "orthogonal_from: got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            initialise(network, num_classes=4, image_size=16, **values)  # type: ignore[arg-type]
