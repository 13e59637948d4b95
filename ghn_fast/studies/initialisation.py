"""Where a network starts from: random, predicted, orthogonal or given parameters."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_fast.hypernet import GHN
from ghn_fast.hypernet.batch_statistics import track_running_statistics
from ghn_fast.studies.networks import Network
from ghn_fast.vision.augment import seeded_generator

FILES = (".safetensors", ".pt", ".pth")
INITIALISATIONS = ("random", "he", "orthogonal", "predicted", "FILE.safetensors")

BLOCK = 64
"""Channels of a decoded block of the published hypernetworks: wider weights repeat."""


def initialise(
    network: Network,
    how: str,
    num_classes: int,
    image_size: int,
    *,
    ghn: GHN | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    head: bool | None = None,
    noise: float = 0.0,
    orthogonal_from: int | None = None,
) -> nn.Module:
    """Build a network and fill its parameters. BatchNorm layers have fresh running statistics.

    Args:
        network: The architecture.
        how: ``random``, as the network initialises itself; ``he``, Gaussian weights of variance
            2 / fan-in (arXiv 1502.01852) in every convolution and linear layer but the last one;
            ``orthogonal`` weights with the same variance; ``predicted`` by ``ghn``; or the name
            of a safetensors file, whose parameters of another shape (a classifier of other
            classes) are left out.
        num_classes: Number of classes.
        image_size: Height and width of the images in pixels.
        ghn: The hypernetwork, for ``predicted``.
        seed: Seed of everything that is random.
        device: Where the network is put.
        head: Whether the classifier is predicted, too; by default if the hypernetwork was trained
            for as many classes.
        noise: Size of the noise that is added to predicted weights (:func:`add_noise`).
        orthogonal_from: Number of the weight tensor from which on predicted weights are made
            orthogonal (:func:`orthogonalise`), 0 for all; by default none is.

    Raises:
        ValueError: If ``how`` is none of these, ``ghn`` is missing, the file fits nothing, or an
            argument is out of range.
        FileNotFoundError: If the file is missing.
        CaptureError: If a network cannot be captured.
    """
    if noise < 0 or not math.isfinite(noise):
        raise ValueError(f"noise: got {noise}, needs a number of at least 0")
    if orthogonal_from is not None and orthogonal_from < 0:
        raise ValueError(f"orthogonal_from: got {orthogonal_from}, needs at least 0")
    check_init(how, ghn)
    model = network.build(num_classes, image_size, seed=seed)
    generator = seeded_generator("initialise", how, network.name, seed)
    if how in ("he", "orthogonal"):
        _fill_weights(model, how, generator)
    elif how == "predicted":
        assert ghn is not None  # check_init
        _predict(ghn, network, model, num_classes, image_size, head)
        if noise:
            add_noise(model, noise, generator)
        if orthogonal_from is not None:
            orthogonalise(model, orthogonal_from, generator)
    elif how != "random":
        load_parameters(model, how)
    track_running_statistics(model)
    return model.to(device)


def check_init(how: str, ghn: GHN | None) -> None:
    """Refuse a start that there is not, before any work.

    Raises:
        ValueError: If ``how`` is none of those of :func:`initialise`, or it needs a hypernetwork.
        FileNotFoundError: If it is a file that is missing.
    """
    if how.endswith(FILES):
        if not Path(how).is_file():
            raise FileNotFoundError(f"init: no such file of parameters: {how}")
    elif how not in INITIALISATIONS:
        raise ValueError(f"init: got {how!r}, needs one of {', '.join(INITIALISATIONS)}")
    elif how == "predicted" and ghn is None:
        raise ValueError("ghn: got None, needs a hypernetwork to predict parameters")


def _predict(
    ghn: GHN,
    network: Network,
    model: nn.Module,
    num_classes: int,
    image_size: int,
    head: bool | None,
) -> None:
    same = num_classes == ghn.config.num_classes
    if head and not same:
        raise ValueError(
            f"head: the hypernetwork predicts classifiers of {ghn.config.num_classes} classes, the "
            f"data has {num_classes}; needs the head to be kept"
        )
    device = ghn.device
    model.to(device)
    graph = None
    if network.config is not None:
        config = ghn.config
        graph = network.graph(
            num_classes, image_size, config.virtual_edges, rules=config.graph_rules
        )
    with warnings.catch_warnings():
        # Operations that no path uses keep their values.
        warnings.simplefilter("ignore", UserWarning)
        ghn.predict(model, graph, head=same if head is None else head)


def weight_tensors(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The weights of convolutions and linear layers, in the network's order."""
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.Embedding))
        for parameter in module.parameters(recurse=False)
    }
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in norms
    ]


def _fill_weights(model: nn.Module, how: str, generator: torch.Generator) -> None:
    weights = weight_tensors(model)
    for _, weight in weights[:-1]:
        fan_in = max(weight[0].numel(), 1)
        values = torch.randn(weight.shape, generator=generator) * math.sqrt(2 / fan_in)
        if how == "orthogonal":
            orthogonal = _orthogonal(values)
            values = orthogonal * (values.norm() / orthogonal.norm())
        _write(weight, values)


def add_noise(model: nn.Module, beta: float, generator: torch.Generator) -> None:
    """Add Gaussian noise to weights where blocks repeat, in place (arXiv 2207.10049, section 3).

    Copies of a block get equal gradients and stay copies; noise tells them apart. Its standard
    deviation is ``beta`` times the standard deviation of the correlations of the weight's channels.
    Norm layers get that of the weight before them; the first :data:`BLOCK` channels, which are no
    copies, and the classifier get none.

    Args:
        model: The network.
        beta: Size of the noise; 3e-5 there.
        generator: CPU generator of the noise.
    """
    weights = weight_tensors(model)
    last = weights[-1][1] if weights else None
    ids = {id(weight) for _, weight in weights}
    deviation = 0.0
    for parameter in model.parameters():
        if parameter is last:
            break
        values = parameter.detach().cpu().float()
        if id(parameter) in ids:
            deviation = float(torch.corrcoef(_tall(values)).std().nan_to_num())
            part = values[BLOCK:, BLOCK:]
        else:
            part = values[BLOCK:]
        part += beta * deviation * torch.randn(part.shape, generator=generator)
        _write(parameter, values)


def orthogonalise(model: nn.Module, first: int, generator: torch.Generator) -> list[str]:
    """Make wide weights from a layer on orthogonal, in place (arXiv 2207.10049, section 3).

    A weight with more than :data:`BLOCK` input or output channels, flattened to a matrix of output
    channels by the rest, is replaced by the orthogonal factor of its QR decomposition: predicted
    tensors lack diversity, most of all in late layers. What repeats exactly has no such factor,
    and gets noise of a thousandth of its size first.

    Args:
        model: The network. The last weight, its classifier, stays.
        first: Number of the first weight tensor, from 0 on.
        generator: CPU generator of the noise.

    Returns:
        The names of the weights that were changed.

    Raises:
        ValueError: If the network has no weight ``first``.
    """
    weights = weight_tensors(model)[:-1]
    if first >= max(len(weights), 1):
        raise ValueError(f"orthogonal_from: got {first}, but there are {len(weights)} weights")
    changed = []
    for name, weight in weights[first:]:
        if max(weight.shape[:2]) <= BLOCK:
            continue
        values = weight.detach().cpu().float()
        size = 1e-3 * values.pow(2).mean().sqrt().clamp(min=1e-12)
        values = values + size * torch.randn(values.shape, generator=generator)
        _write(weight, _orthogonal(values))
        changed.append(name)
    return changed


def _tall(values: Tensor) -> Tensor:
    """A weight as a matrix of output channels by the rest, the longer side first."""
    matrix = values.flatten(1)
    return matrix.T if matrix.shape[0] < matrix.shape[1] else matrix


def _orthogonal(values: Tensor) -> Tensor:
    """The orthogonal factor of a weight; the triangular one has a positive diagonal."""
    q, r = torch.linalg.qr(_tall(values))
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    wide = values.flatten(1).shape[0] < values.flatten(1).shape[1]
    return (q.T if wide else q).reshape(values.shape)


def _write(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values.to(parameter.dtype))


def load_parameters(model: nn.Module, path: str | Path) -> list[str]:
    """Fill a network from a file, by name; what has another shape or is missing stays.

    Args:
        model: The network.
        path: A safetensors file, or a state dict that torch saved (read with ``weights_only``).

    Returns:
        The names of the parameters that the file does not have in their shape.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or less than half of the network's parameters are in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"init: no such file of parameters: {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as parameters ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: got {type(state).__name__}, needs a state dict")
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and isinstance(value, Tensor) and own[name].shape == value.shape
    }
    names = [name for name, _ in model.named_parameters()]
    missing = [name for name in names if name not in fitting]
    if 2 * len(missing) > len(names):
        raise ValueError(
            f"{path}: has {len(names) - len(missing)} of the network's {len(names)} parameters in "
            f"their shapes, the first one missing is '{missing[0]}'; needs those of this network"
        )
    model.load_state_dict(fitting, strict=False)
    return missing
