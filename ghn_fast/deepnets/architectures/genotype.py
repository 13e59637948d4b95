"""What describes a network of DeepNets-1M: a genotype (its two cells) and a configuration.

A network is a stack of cells (arXiv 1806.09055, section 2.1). A cell reads the outputs of the two
cells before it, states 0 and 1, and adds one state per step, each the sum of two operations on
earlier states; the states listed in ``concat`` make its output. Cells at one third and at two
thirds of the depth are reduction cells, all others normal cells. The space of operations and
configurations is that of DeepNets-1M (arXiv 2110.13100, section 3 and appendix A).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ghn_fast.deepnets.architectures.primitives import PRIMITIVES

Gene = tuple[str, int]
"""An operation: the name of its primitive and the index of the state that it reads."""


@dataclass(frozen=True, slots=True)
class Genotype:
    """The normal and the reduction cell of a network.

    Step ``i`` of a cell adds state ``i + 2``, the sum of operations ``2 * i`` and ``2 * i + 1``.

    Attributes:
        normal: Operations of normal cells, two per step.
        normal_concat: Indices of the states that make the output of a normal cell.
        reduce: Operations of reduction cells, two per step.
        reduce_concat: Indices of the states that make the output of a reduction cell.

    Raises:
        ValueError: If a primitive is unknown or an index does not fit; sequences become tuples.
    """

    normal: tuple[Gene, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Gene, ...]
    reduce_concat: tuple[int, ...]

    def __post_init__(self) -> None:
        for cell in ("normal", "reduce"):
            genes = _genes(cell, getattr(self, cell))
            concat = _concat(f"{cell}_concat", getattr(self, f"{cell}_concat"), len(genes) // 2)
            object.__setattr__(self, cell, genes)
            object.__setattr__(self, f"{cell}_concat", concat)

    def primitives(self) -> set[str]:
        """Names of the primitives that the two cells use."""
        return {name for name, _ in self.normal + self.reduce}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Genotype:
        """Read the published JSON.

        Raises:
            ValueError: If a field is missing, unknown or not valid; the message names it.
        """
        _check_fields("genotype", data, cls.__slots__, required=cls.__slots__)
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The published JSON."""
        return {
            "normal": [list(gene) for gene in self.normal],
            "normal_concat": list(self.normal_concat),
            "reduce": [list(gene) for gene in self.reduce],
            "reduce_concat": list(self.reduce_concat),
        }


# Steps of all cells of a network: a few bytes must not ask for hours of work. Deep networks have 36
# cells, dense ones 10 steps.
MOST_STEPS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """All that describes a network, except its number of classes and its image size.

    Attributes:
        genotype: Its cells.
        n_cells: Number of cells.
        C: Number of channels of the first cells.
        stem_type: 0 for one convolution, 1 for the three convolutions of an ImageNet network;
            networks with ``msa`` have a patch convolution and a positional encoding instead.
        stem_pool: Whether a max pooling ends the stem of type 0.
        norm: ``"bnorm"`` for batch normalisation, ``None`` for none.
        preproc: Whether cells begin with a 1x1 convolution on each of their inputs. Needed when the
            output of a cell has more channels than its states, or ``C_mult`` is above 1.
        fc_layers: Number of linear layers of the classifier.
        fc_dim: Width between the linear layers of the classifier.
        glob_avg: Whether features are averaged over all positions before the classifier.
        ks: Kernel size of the stem's first convolution.
        C_mult: Factor on the number of channels at each reduction cell.

    Raises:
        ValueError: If a field has a wrong type or value; the message names it.
    """

    genotype: Genotype
    n_cells: int
    C: int = 32
    stem_type: int = 0
    stem_pool: bool = False
    norm: str | None = "bnorm"
    preproc: bool = True
    fc_layers: int = 1
    fc_dim: int = 256
    glob_avg: bool = True
    ks: int = 3
    C_mult: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.genotype, Mapping):
            object.__setattr__(self, "genotype", Genotype.from_dict(self.genotype))
        if not isinstance(self.genotype, Genotype):
            raise _error("genotype", self.genotype, "a Genotype or its published JSON layout")
        for name in ("n_cells", "C", "fc_layers", "fc_dim", "C_mult"):
            _check_positive(name, getattr(self, name))
        for name in ("stem_pool", "preproc", "glob_avg"):
            if not isinstance(getattr(self, name), bool):
                raise _error(name, getattr(self, name), "true or false")
        if not _is_int(self.stem_type) or self.stem_type not in (0, 1):
            raise _error("stem_type", self.stem_type, "0 (simple) or 1 (ImageNet-style)")
        if self.norm not in ("bnorm", None):
            raise _error("norm", self.norm, "'bnorm' or None")
        if not _is_int(self.ks) or self.ks < 1 or self.ks % 2 == 0:
            raise _error("ks", self.ks, "an odd positive integer")
        steps = max(len(self.genotype.normal), len(self.genotype.reduce)) // 2
        if self.n_cells * steps > MOST_STEPS:
            raise _error(
                "n_cells", self.n_cells, f"at most {MOST_STEPS // steps} cells of {steps} steps"
            )
        self._check_channels()

    def _check_channels(self) -> None:
        genotype = self.genotype
        wide = max(len(genotype.normal_concat), len(genotype.reduce_concat)) > 1
        if not self.preproc and (wide or self.C_mult > 1):
            raise _error(
                "preproc",
                self.preproc,
                "true when a cell concatenates several states or C_mult is above 1",
            )
        if self.C < 8 and self.is_vit:
            raise _error("C", self.C, "at least 8 for the 8 heads of msa")
        if self.C < 2 and ("cse" in genotype.primitives() or self.stem_type == 1):
            raise _error("C", self.C, "at least 2: cse and stem_type 1 halve the channels")
        if self._splits_odd_channels() and not self.is_vit:
            raise _error("C", self.C, "an even number: layers that halve the size split channels")

    def _splits_odd_channels(self) -> bool:
        """Whether a factorized reduction would have to yield an odd number of channels."""
        if self.C % 2 == 0:
            return False
        skips = any(name == "skip_connect" and i < 2 for name, i in self.genotype.reduce)
        channels = self.C
        for cell in range(self.n_cells):
            reduction = self.is_reduction(cell)
            channels *= self.C_mult if reduction else 1
            halved = self.is_reduction(cell - 1) if cell else self.stem_type == 1
            if channels % 2 and ((halved and self.preproc) or (reduction and skips)):
                return True
        return False

    @property
    def is_vit(self) -> bool:
        """Whether the network has self-attention, and with it another stem and no reductions."""
        return "msa" in self.genotype.primitives()

    def is_reduction(self, cell: int) -> bool:
        """Whether cell ``cell`` is a reduction cell."""
        return cell > 0 and cell in (self.n_cells // 3, 2 * self.n_cells // 3)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """Read the published JSON.

        Args:
            data: Fields of the configuration; ``num_nodes`` and ``num_params``, which published
                files list beside them, are ignored. Fields with a default may be missing.

        Raises:
            ValueError: If a field is missing, unknown or not valid; the message names it.
        """
        known = (*cls.__slots__, "num_nodes", "num_params")
        _check_fields("configuration", data, known, required=("genotype", "n_cells"))
        return cls(**{name: data[name] for name in cls.__slots__ if name in data})

    def to_dict(self) -> dict[str, Any]:
        """The published JSON."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        fields["genotype"] = self.genotype.to_dict()
        return fields


def _genes(field: str, value: Any) -> tuple[Gene, ...]:
    needs = "a non-empty list of pairs (primitive, index), two per step"
    if not _is_sequence(value) or len(value) == 0 or len(value) % 2:
        raise _error(field, value, needs)
    genes = []
    for position, gene in enumerate(value):
        if not _is_sequence(gene) or len(gene) != 2:
            raise _error(f"{field}[{position}]", gene, "a pair (primitive, index)")
        name, index = gene
        if name not in PRIMITIVES:
            raise _error(f"{field}[{position}]", name, f"one of {', '.join(PRIMITIVES)}")
        states = 2 + position // 2
        if not _is_int(index) or not 0 <= index < states:
            needs = f"the index of an earlier state, 0 to {states - 1}"
            raise _error(f"{field}[{position}]", index, needs)
        genes.append((str(name), int(index)))
    return tuple(genes)


def _concat(field: str, value: Any, steps: int) -> tuple[int, ...]:
    if not _is_sequence(value) or len(value) == 0 or not all(map(_is_int, value)):
        raise _error(field, value, "a non-empty list of state indices")
    if min(value) < 2 or max(value) > steps + 1 or len(set(value)) < len(value):
        raise _error(field, value, f"distinct states from 2 to {steps + 1} (of {steps} steps)")
    return tuple(map(int, value))


def _check_fields(what: str, data: Any, known: Sequence[str], *, required: Sequence[str]) -> None:
    if not isinstance(data, Mapping):
        raise _error(what, data, f"a mapping with the fields {', '.join(known)}")
    missing = [name for name in required if name not in data]
    if missing:
        raise ValueError(f"{what}: field {missing[0]!r} is missing, needs {', '.join(required)}")
    unknown = [name for name in data if name not in known]
    if unknown:
        raise ValueError(f"{what}: got unknown field {unknown[0]!r}, knows {', '.join(known)}")


def _check_positive(name: str, value: Any) -> None:
    if not _is_int(value) or value < 1:
        raise _error(name, value, "a positive integer")


def _is_int(value: Any) -> bool:
    return type(value) is int or (isinstance(value, int) and not isinstance(value, bool))


def _is_sequence(value: Any) -> bool:
    # Nearly all are tuples; asking an abstract class takes long.
    return type(value) is tuple or (
        isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    )


def _error(field: str, got: Any, needs: str) -> ValueError:
    return ValueError(f"{field}: got {got!r}, needs {needs}")


DARTS: Final = Genotype(
    normal=(
        *(("sep_conv_3x3", i) for i in (0, 1, 0, 1, 1)),
        ("skip_connect", 0),
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
    ),
    reduce_concat=(2, 3, 4, 5),
)
"""The cells found by DARTS, second order, on CIFAR-10 (arXiv 1806.09055, figures 4 and 5)."""

PDARTS: Final = Genotype(
    normal=(
        ("skip_connect", 0),
        ("dil_conv_3x3", 1),
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 3),
        ("sep_conv_3x3", 0),
        ("dil_conv_5x5", 4),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("avg_pool_3x3", 0),
        ("sep_conv_5x5", 1),
        ("sep_conv_3x3", 0),
        ("dil_conv_5x5", 2),
        ("max_pool_3x3", 0),
        ("dil_conv_3x3", 1),
        ("dil_conv_3x3", 1),
        ("dil_conv_5x5", 3),
    ),
    reduce_concat=(2, 3, 4, 5),
)
"""The cells found by P-DARTS on CIFAR-10 (arXiv 1904.12760, figure 3)."""

VIT: Final = Genotype(
    normal=(("none", 0), ("msa", 1)),
    normal_concat=(2,),
    reduce=(("none", 0), ("avg_pool_3x3", 1)),
    reduce_concat=(2,),
)
"""The cells of the small vision transformer in the ``predefined`` split."""

VIT_CONFIG: Final = NetworkConfig(
    genotype=VIT, n_cells=12, C=128, glob_avg=True, preproc=False, C_mult=1
)
"""The vision transformer of the ``predefined`` split."""
