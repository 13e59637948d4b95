"""Random architectures of DeepNets-1M (arXiv 2110.13100, section 3 and appendix A).

Architecture ``index`` of a split is a pure function of (split, seed, index): each has a generator
of its own, so that neither the number of workers nor the order of the calls matters.

**Distribution.** A candidate is drawn as follows; all choices are uniform and independent unless a
probability is given. What differs between splits is in
:data:`ghn_fast.deepnets.sampling.splits.SPACES`.

1. The number of cells; a threshold from ``deep``; the number of steps per cell, at most
   ``deep_steps`` with more cells than the threshold, at most the largest of ``steps`` otherwise.
2. Each step of a cell reads two different earlier states, an ordered pair, by one operation each.
   The published generator gets there through DARTS' parsing of random architecture weights: the
   strongest operation of each edge, then the two strongest edges. As the weights are independent
   and equally distributed, all ordered pairs of edges are equally likely, and so are all
   operations, whatever the edge. (Ties go to the first; weights that agree in float32 are so rare
   that they decide less than one operation in a thousand.) The operations are all primitives, but
   without ``none`` in cells of one step; in half of the architectures those of the reduction cell
   are only ``none``, the two poolings and ``skip_connect``.
3. The output of a cell concatenates its states. In half of the architectures with more than one
   step each state but the last is left out with probability 1/2, the same ones in both cells.
4. Rejected are candidates in which a cell has two ``cse``, or two of ``conv_5x5`` and ``conv_7x7``;
   with ``cse`` but without convolution; and without convolution, ``msa`` and ``cse``.
5. ``ks`` from 3, 5, 7; ``C_mult`` from 1, 2; the type of the stem; with stem type 0, ``stem_pool``
   with probability 1/2; one or two linear layers in the classifier. ``preproc`` is set with more
   than one step or ``C_mult`` 2, else with the probabilities of ``preproc``. ``glob_avg`` is set in
   networks with ``msa`` and with more cells than the threshold, else with probability 9/10. Batch
   normalisation is missing with probability 1/2 in networks of the two smallest numbers of cells
   and at most ``deep_steps`` steps, where the split does not fix it.
6. Rejected are candidates without a path from the input to the output, and candidates with more
   than ``max_params`` parameters for images of 32 or of 224 pixels, at 32 channels, 10 classes and
   256 hidden units of the classifier.

A rejected candidate is followed by another from the same stream. All architectures have ``C`` 32
and ``fc_dim`` 256; :mod:`ghn_fast.deepnets.loading.meta_batches` draws widths for training.

**Streams.** Each split has a stream of its own, with one exception as published: ``wide`` is
``test``, built with more channels. Streams of different splits are independent, so the same small
architecture can come up in two of them by chance; :func:`architecture_key` identifies it, and
``exclude`` keeps it out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from ghn_fast.deepnets.architectures.genotype import Gene, Genotype, NetworkConfig
from ghn_fast.deepnets.architectures.primitives import PRIMITIVES
from ghn_fast.deepnets.architectures.spec import is_connected
from ghn_fast.deepnets.graphs.sizes import count_for_sizes
from ghn_fast.deepnets.sampling.splits import IMAGE_SIZES, SPACES, Space, check_split

_SIZES = tuple(IMAGE_SIZES.values())
_POOLING = PRIMITIVES[:4]
_LARGE_CONVOLUTIONS = ("conv_5x5", "conv_7x7")


def sample_config(
    split: str, index: int, seed: int, *, exclude: Collection[str] = frozenset()
) -> NetworkConfig:
    """Architecture ``index`` of a split; the module's description states the distribution.

    Args:
        split: A key of :data:`SPACES`.
        index: Number of the architecture, from 0 on; there is no upper bound.
        seed: Seed of the whole data set, not negative.
        exclude: Keys (see :func:`architecture_key`) of architectures that must not come up, for
            example all of ``test`` when sampling for training. With it, the result is a function of
            ``exclude``, too, but only where a candidate is excluded.

    Raises:
        ValueError: If ``split`` is unknown, or ``index`` or ``seed`` is negative.
    """
    check_split(split)
    for name, value in (("index", index), ("seed", seed)):
        if not isinstance(value, (int, np.integer)) or value < 0:
            raise ValueError(f"{name}: got {value!r}, needs an integer that is not negative")
    space = SPACES[split]
    stream = _Stream(space.stream, int(seed), int(index))
    while True:
        config = _candidate(space, stream)
        if config is None or not is_connected(config):
            continue
        if max(count_for_sizes(config, 10, _SIZES)) > space.max_params:
            continue
        if not exclude or architecture_key(config) not in exclude:
            return config


def base_params(config: NetworkConfig) -> dict[str, int]:
    """Number of parameters of an architecture per image size, as files list them.

    For 10 classes, 32 channels, and 256 hidden units in the classifier.
    """
    base = replace(config, C=32, fc_dim=256)
    return dict(zip(IMAGE_SIZES, count_for_sizes(base, 10, _SIZES), strict=True))


def architecture_key(config: NetworkConfig) -> str:
    """Identify the structure of an architecture, for finding it in several splits.

    Equal for configurations that differ only in widths (``C``, ``fc_dim``), in the order of a
    step's two operations, in the order of the concatenated states, or in fields of the stem that
    networks with ``msa`` do not use.

    Returns:
        32 hexadecimal digits, the same on every machine.
    """
    genotype = config.genotype
    stem = None if config.is_vit else [config.ks, config.stem_type, config.stem_pool]
    structure = [
        [sorted(genotype.normal[i : i + 2]) for i in range(0, len(genotype.normal), 2)],
        sorted(genotype.normal_concat),
        [sorted(genotype.reduce[i : i + 2]) for i in range(0, len(genotype.reduce), 2)],
        sorted(genotype.reduce_concat),
        stem,
        [config.n_cells, config.C_mult, config.norm, config.preproc],
        [config.glob_avg, config.fc_layers],
    ]
    return hashlib.sha256(json.dumps(structure).encode()).hexdigest()[:32]


class _Stream:
    """Random choices from the raw output of a bit generator, which NumPy keeps stable."""

    def __init__(self, name: str, seed: int, index: int) -> None:
        word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        self._bits = np.random.PCG64(np.random.SeedSequence((word, seed, index)))
        self._words: list[int] = []

    def below(self, bound: int) -> int:
        """A number from 0 to ``bound - 1``."""
        if not self._words:
            self._words = self._bits.random_raw(64).tolist()
        return self._words.pop() * bound >> 64

    def between(self, least: int, largest: int) -> int:
        """A number from ``least`` to ``largest``."""
        return least + self.below(largest - least + 1)

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.below(1 << 53) < probability * (1 << 53)


def _candidate(space: Space, stream: _Stream) -> NetworkConfig | None:
    """Steps 1 to 5 of the distribution; ``None`` if step 4 rejects."""
    n_cells = stream.between(*space.cells)
    threshold = space.deep[stream.below(len(space.deep))]
    is_deep = n_cells > threshold
    steps = stream.between(space.steps[0], space.deep_steps if is_deep else space.steps[1])
    first = 0 if steps > 1 else 1
    normal = _cell(stream, steps, PRIMITIVES[first:])
    reduce = _cell(stream, steps, (_POOLING if stream.chance(0.5) else PRIMITIVES)[first:])
    if not _accepted(normal, reduce):
        return None
    concat = tuple(range(2, steps + 2))
    if steps > 1 and stream.chance(0.5):
        concat = (*(state for state in concat[:-1] if stream.chance(0.5)), concat[-1])
    genotype = Genotype(tuple(normal), concat, tuple(reduce), concat)

    is_vit = "msa" in genotype.primitives()
    c_mult = stream.between(1, 2)
    norm = space.norm
    if norm == "mixed":
        may_lack = n_cells <= space.cells[0] + 1 and steps <= space.deep_steps
        norm = None if may_lack and stream.chance(0.5) else "bnorm"
    stem_type = stream.below(2)
    return NetworkConfig(
        genotype=genotype,
        n_cells=n_cells,
        ks=(3, 5, 7)[stream.below(3)],
        C=32,
        C_mult=c_mult,
        fc_layers=stream.between(1, 2),
        fc_dim=256,
        norm=norm,
        preproc=steps > 1 or c_mult > 1 or stream.chance(space.preproc[is_vit]),
        glob_avg=is_vit or is_deep or stream.chance(0.9),
        stem_type=stem_type,
        stem_pool=stem_type == 0 and stream.chance(0.5),
    )


def _cell(stream: _Stream, steps: int, primitives: tuple[str, ...]) -> list[Gene]:
    genes = []
    for step in range(steps):
        first = stream.below(step + 2)
        second = stream.below(step + 1)
        for source in (first, second + (second >= first)):
            genes.append((primitives[stream.below(len(primitives))], source))
    return genes


def _accepted(normal: list[Gene], reduce: list[Gene]) -> bool:
    """Step 4 of the distribution."""
    names = [name for name, _ in normal], [name for name, _ in reduce]
    if any(cell.count("cse") > 1 for cell in names):
        return False
    if any(sum(cell.count(name) for name in _LARGE_CONVOLUTIONS) > 1 for cell in names):
        return False
    used = {*names[0], *names[1]}
    return any("conv" in name for name in used) or ("msa" in used and "cse" not in used)
