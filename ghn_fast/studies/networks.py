"""Networks by name, as studies and their commands take them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast.capturing import capture
from ghn_fast.deepnets import SPLITS, DeepNets, NetworkConfig, SampledNets, build_graph
from ghn_fast.deepnets.architectures.genotype import DARTS, PDARTS, VIT_CONFIG
from ghn_fast.deepnets.architectures.network import Network as CellNetwork
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.rules import GraphRules
from ghn_fast.models import resolve
from ghn_fast.utils.seeds import derive_seed
from ghn_fast.vision.images import SMALL_IMAGE
from ghn_fast.vision.small_images import fit_to_images

# The network of arXiv 2110.13100, section 4.4, that has the cells of an architecture search.
DARTS_CELLS, DARTS_CHANNELS = 14, 48
_TRANSFORMERS = "hf:"
_GENOTYPES = {"darts": DARTS, "pdarts": PDARTS}

KINDS = (
    "a torchvision model (resnet50)",
    "timm:NAME",
    "hf:CONFIG_OR_FOLDER of an image classifier",
    "deepnets:SPLIT:INDEX or deepnets:SPLIT:FIRST-LAST",
    "vit (of the predefined split), darts, pdarts",
    "FILE.json with a genotype",
    "FILE.py:FUNCTION",
)


@dataclass(frozen=True)
class Network:
    """An architecture that studies train, predict and compare.

    Attributes:
        name: Its name, unique among the networks of a study; files are called after it.
        config: Its configuration, if it is made of cells.
        factory: Otherwise, what builds it: called with ``num_classes`` and ``image_size``.
        source: The file that the factory goes by, if there is one: another file of that name is
            another network.
    """

    name: str
    config: NetworkConfig | None = None
    factory: Callable[[int, int], nn.Module] | None = None
    source: Path | None = None

    def build(self, num_classes: int, image_size: int, *, seed: int = 0) -> nn.Module:
        """The network with its own random initialisation, which ``seed`` fixes.

        Args:
            num_classes: Number of classes.
            image_size: Height and width of the images in pixels.
            seed: Seed of the initialisation.

        Raises:
            ValueError: If the factory returns no module.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed("initialise", self.name, seed))
            if self.config is not None:
                return CellNetwork(self.config, num_classes, image_size)
            assert self.factory is not None  # one of the two is given
            model = self.factory(num_classes, image_size)
        if not isinstance(model, nn.Module):
            raise ValueError(f"{self.name}: got {type(model).__name__}, needs a torch.nn.Module")
        return model

    def graph(
        self,
        num_classes: int,
        image_size: int,
        virtual_edges: int = 50,
        *,
        rules: GraphRules = GraphRules.GHN2,
    ) -> ArchGraph:
        """Its architecture graph; without a capture if it is made of cells.

        Args:
            num_classes, image_size: As in :meth:`build`.
            virtual_edges: Largest distance that gets a virtual edge; 1 means none.
            rules: The rules that the graph is made by.

        Raises:
            CaptureError: If it cannot be captured.
        """
        if self.config is not None:
            return build_graph(
                self.config,
                num_classes=num_classes,
                image_size=image_size,
                virtual_edges=virtual_edges,
                rules=rules,
            )
        try:
            with torch.device("meta"):
                model = self.build(num_classes, image_size)
        except RuntimeError:  # some compute their own widths with tensors (RegNet of torchvision)
            model = self.build(num_classes, image_size)
        shape = getattr(model, "input_shape", (3, image_size, image_size))
        return capture(model, shape, virtual_edges, rules=rules)

    @property
    def file_name(self) -> str:
        """The name with letters that every file system takes."""
        return re.sub(r"[^\w.-]+", "-", self.name).strip("-.") or "network"


def find_networks(
    names: Iterable[str],
    *,
    deepnets: str | Path | None = None,
    seed: int = 0,
    channels: int | None = None,
    cells: int | None = None,
) -> list[Network]:
    """Find networks by their names.

    Args:
        names: One or more of: a classification model of torchvision; ``timm:NAME``;
            ``hf:CONFIG_OR_FOLDER`` of an image classifier of transformers;
            ``deepnets:SPLIT:INDEX`` or ``deepnets:SPLIT:FIRST-LAST`` (the last one included);
            ``vit`` (of the predefined split), ``darts`` or ``pdarts`` (14 cells of 48 channels); a
            JSON file with a configuration or a genotype, as :mod:`ghn_fast.studies.search` writes
            them; ``FILE.py:FUNCTION``, called with ``num_classes`` and ``image_size``. See
            :func:`ghn_fast.models.resolve`.
        deepnets: Folder of generated files of DeepNets-1M; without it splits are sampled.
        seed: Seed of sampled splits.
        channels: Number of channels of networks made of cells, instead of their own.
        cells: Their number of cells, likewise.

    Returns:
        The networks in that order, with distinct names.

    Raises:
        ValueError: If a name says none of these, or comes twice; the message lists what there is.
        ModuleNotFoundError: If the library of a network is not installed.
        FileNotFoundError: If a file is missing.
    """
    found: list[Network] = []
    for name in names:
        found += _find(name, deepnets, seed)
    if not found:
        raise ValueError(f"networks: got none, needs at least one: {'; '.join(KINDS)}")
    changes: dict[str, Any] = {"C": channels, "n_cells": cells}
    changes = {field: value for field, value in changes.items() if value is not None}
    if changes:
        found = [
            n if n.config is None else replace(n, config=replace(n.config, **changes))
            for n in found
        ]
    seen: set[str] = set()
    for network in found:
        if network.name in seen:
            raise ValueError(f"networks: {network.name} comes twice, needs each name once")
        seen.add(network.name)
    return found


def _find(name: str, deepnets: str | Path | None, seed: int) -> list[Network]:
    kind, _, rest = name.partition(":")
    if kind == "deepnets":
        return _of_split(name, rest, deepnets, seed)
    if name == "vit":
        return [Network(name, VIT_CONFIG)]
    if name in _GENOTYPES:
        config = NetworkConfig(
            genotype=_GENOTYPES[name], n_cells=DARTS_CELLS, C=DARTS_CHANNELS, stem_type=1
        )
        return [Network(name, config)]
    if name.endswith(".json"):
        return [_of_file(Path(name))]
    if ".py:" in name:
        path, _, function = name.rpartition(":")
        network = Network(f"{Path(path).stem}.{function}", factory=_named(name))
        return [replace(network, source=Path(path))]
    if name.startswith(_TRANSFORMERS):
        described = Path(name.removeprefix(_TRANSFORMERS)) / "config.json"
        return [
            Network(name, factory=_named(name), source=described if described.is_file() else None)
        ]
    return [Network(name, factory=_named(name))]


def _of_split(name: str, rest: str, folder: str | Path | None, seed: int) -> list[Network]:
    match = re.fullmatch(r"(\w+):(\d{1,9})(?:-(\d{1,9}))?", rest)
    if match is None or match[1] not in SPLITS:
        raise ValueError(
            f"networks: got {name!r}, needs deepnets:SPLIT:INDEX or deepnets:SPLIT:FIRST-LAST with "
            f"one of the splits {', '.join(SPLITS)}"
        )
    split, first = match[1], int(match[2])
    last = first if match[3] is None else int(match[3])
    if last < first:
        raise ValueError(f"networks: got {name!r}, needs a first number that is not above the last")
    nets: DeepNets | SampledNets
    if folder is not None or split == "predefined":
        nets = DeepNets(folder, split)
    else:
        nets = SampledNets(split, last + 1, seed)
    if last >= len(nets):
        raise ValueError(f"networks: got {name!r}, but the split has {len(nets)} architectures")
    found = []
    for index in range(first, last + 1):
        item = nets[index]
        if item.config is None:
            found.append(Network(item.name, factory=item.build))
        else:
            found.append(Network(item.name, item.config_for(32)))
    return found


def _named(name: str) -> Callable[[int, int], nn.Module]:
    """What builds a network that is known to :func:`ghn_fast.models.resolve`."""
    resolve(name, num_classes=10, image_size=SMALL_IMAGE)  # a name of no network is refused now

    def build(num_classes: int, image_size: int) -> nn.Module:
        if name.startswith("vit_") and image_size < SMALL_IMAGE:
            message = f"{name}: its patches need images of {SMALL_IMAGE} or more pixels"
            raise ValueError(f"{message}, got {image_size}; 'vit' is one for small images")
        named = resolve(name, num_classes=num_classes, image_size=image_size)
        model = named.build()
        if name.startswith(_TRANSFORMERS):
            model = _Logits(model)
        if not named.built_for_size:
            return fit_to_images(model, image_size)
        if not hasattr(model, "input_shape"):
            model.input_shape = (3, image_size, image_size)  # type: ignore[assignment]
        return model

    return build


class _Logits(nn.Module):
    """A classifier of transformers that takes images and gives logits, without names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


def _of_file(path: Path) -> Network:
    try:
        data = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: got {type(data).__name__}, needs a configuration or a genotype")
    try:
        if "genotype" not in data:
            data = {"genotype": data, "n_cells": DARTS_CELLS, "C": DARTS_CHANNELS}
            data["stem_type"] = 1
        return Network(path.stem, NetworkConfig.from_dict(data))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def names_of(networks: Sequence[Network]) -> list[str]:
    """The names of networks, in their order."""
    return [network.name for network in networks]


def names_to_find(names: Iterable[str]) -> list[str]:
    """What :func:`find_networks` takes, for names that networks have: ``val-3`` is of a split."""
    found = []
    for name in names:
        split, _, index = name.rpartition("-")
        known = split in SPLITS and index.isdecimal()
        found.append(f"deepnets:{split}:{index}" if known else name)
    return found
