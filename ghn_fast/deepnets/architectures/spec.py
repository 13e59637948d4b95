"""What a configuration builds: channels and sizes of every part, and which operations are alive.

The module, the architecture graph and the parameter shapes of a network are all derived from this
specification. An operation is alive when a path leads through it from the input to the output. All
others own parameters, as in the published networks, but nothing executes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ghn_fast.deepnets.architectures.genotype import Gene, NetworkConfig
from ghn_fast.deepnets.architectures.primitives import halved

# Images below this size get the stems for small images (CIFAR-10), all others those for ImageNet.
LARGE_IMAGE = 64


@dataclass(frozen=True, slots=True)
class OpSpec:
    """An operation of a cell.

    Attributes:
        primitive: Name of its primitive.
        source: Index of the state that it reads.
        size: Height and width of what it reads.
        stride: 2 where it halves height and width.
        alive: Whether its result matters for the output.
    """

    primitive: str
    source: int
    size: int
    stride: int
    alive: bool


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """What a cell does to one of its inputs first.

    Attributes:
        kind: ``conv``, ``factorized`` (halves height and width by strided convolutions), ``stride``
            (halves them by slicing) or ``identity``.
        in_channels: Number of channels of the input.
        in_size: Height and width of the input.
        alive: Whether its result matters for the output.
    """

    kind: str
    in_channels: int
    in_size: int
    alive: bool


@dataclass(frozen=True, slots=True)
class CellSpec:
    """A cell.

    Attributes:
        channels: Number of channels of each state.
        size: Height and width of states 0 and 1.
        preprocess: What is done to the two inputs.
        ops: Operations, two per step.
        concat: States that make the output; ``None`` stands for zeros, where no path leads from the
            input to a state. Empty when that holds for all of them: the cell has no output.
        alive: Whether its output matters for the output of the network.
    """

    channels: int
    size: int
    preprocess: tuple[PreprocessSpec, ...]
    ops: tuple[OpSpec, ...]
    concat: tuple[int | None, ...]
    alive: bool


@dataclass(frozen=True, slots=True)
class StemSpec:
    """The layers before the first cell.

    Attributes:
        kind: ``vit`` (patches and positional encoding), ``simple`` (one convolution) or
            ``imagenet`` (three convolutions, of which the first two make state 0).
        channels: Number of channels that it yields.
        kernel: Size of the first convolution's kernel.
        stride: Stride of the first convolution; of the first two in the ``imagenet`` stem.
        pool: Whether a max pooling ends it.
        first_size: Height and width of what the first convolution yields.
        sizes: Height and width of its two outputs, which the first cell reads. Only in the
            ``imagenet`` stem they differ, by one more convolution with stride 2.
    """

    kind: str
    channels: int
    kernel: int
    stride: int
    pool: bool
    first_size: int
    sizes: tuple[int, int]


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network.

    Attributes:
        norm: Whether convolutions are followed by batch normalisation.
        stem: Its stem.
        stem1_alive: Whether the second part of the ``imagenet`` stem matters for the output.
        cells: Its cells.
        glob_avg: Whether features are averaged before the classifier.
        classifier: Widths of the classifier: features, hidden layers, classes.
        connected: Whether a path leads from the input to the output.
    """

    norm: bool
    stem: StemSpec
    stem1_alive: bool
    cells: tuple[CellSpec, ...]
    glob_avg: bool
    classifier: tuple[int, ...]
    connected: bool


def network_spec(config: NetworkConfig, num_classes: int = 10, image_size: int = 32) -> NetworkSpec:
    """Specification of a network.

    Raises:
        ValueError: If ``num_classes`` or ``image_size`` is not a positive integer, or images of a
            network with attention make one patch only.
    """
    check_sizes(num_classes, image_size)
    stem = _stem_spec(config, image_size)
    if stem.kind == "vit" and stem.sizes[1] < 2:
        raise ValueError(f"image_size: got {image_size}, needs at least 4 for networks with msa")
    concats = _reachable_states(config)
    alive, inputs_alive = _alive_operations(config, concats)
    cells = []
    channels = config.C
    # Channels and size of the two outputs that the next cell reads.
    before, last = (stem.channels, stem.sizes[0]), (stem.channels, stem.sizes[1])
    for index in range(config.n_cells):
        reduction = config.is_reduction(index)
        if reduction:
            channels *= config.C_mult
        halves = reduction and not config.is_vit
        genes = config.genotype.reduce if reduction else config.genotype.normal
        kinds = _preprocess_kinds(config, index)
        preprocess = tuple(
            PreprocessSpec(kind, *source, used)
            for kind, source, used in zip(kinds, (before, last), inputs_alive[index], strict=True)
        )
        size, concat = last[1], concats[index]
        inner = halved(size) if halves else size
        ops = tuple(
            OpSpec(name, source, size, 2 if halves else 1, used)
            if source < 2
            else OpSpec(name, source, inner, 1, used)
            for (name, source), used in zip(genes, alive[index], strict=True)
        )
        cells.append(CellSpec(channels, size, preprocess, ops, concat, any(alive[index])))
        width = len(config.genotype.reduce_concat if reduction else config.genotype.normal_concat)
        before, last = last, (width * channels, inner)
    features = last[0] if config.glob_avg else last[0] * last[1] ** 2
    return NetworkSpec(
        norm=config.norm is not None,
        stem=stem,
        stem1_alive=inputs_alive[0][1] or (config.n_cells > 1 and inputs_alive[1][0]),
        cells=tuple(cells),
        glob_avg=config.glob_avg,
        classifier=(features, *(config.fc_dim,) * (config.fc_layers - 1), num_classes),
        connected=bool(concats[-1]),
    )


def check_sizes(num_classes: int, image_size: int) -> None:
    """Refuse a number of classes or an image size that is not a positive integer.

    Raises:
        ValueError: If one of them is not; the message names it.
    """
    for name, value in (("num_classes", num_classes), ("image_size", image_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: got {value!r}, needs a positive integer")


def is_connected(config: NetworkConfig) -> bool:
    """Whether a path leads from the input of a network to its output.

    Only networks with ``none`` operations can lack one. DeepNets-1M has no such networks.
    """
    return "none" not in config.genotype.primitives() or bool(_reachable_states(config)[-1])


def _stem_spec(config: NetworkConfig, image_size: int) -> StemSpec:
    large = image_size >= LARGE_IMAGE
    if config.is_vit:
        # Patches of 16x16 without padding, or of 3x3 with a border of one.
        size = image_size // 16 if large else (image_size - 1) // 3 + 1
        kernel = 16 if large else 3
        return StemSpec("vit", config.C, kernel, kernel, False, size, (size, size))
    if config.stem_type == 1:
        stride = 2 if large else 1
        first = (image_size - 1) // stride + 1
        size = (first - 1) // stride + 1
        sizes = (size, halved(size))
        return StemSpec("imagenet", config.C, config.ks, stride, False, first, sizes)
    stride = 4 if large else 1
    first = (image_size - 1) // stride + 1
    size = halved(first) if config.stem_pool else first
    # Three times the channels, which the first cells' convolutions bring back to C.
    channels = 3 * config.C if config.preproc and not large else config.C
    sizes = (size, size)
    return StemSpec("simple", channels, config.ks, stride, config.stem_pool, first, sizes)


def _preprocess_kinds(config: NetworkConfig, index: int) -> tuple[str, str]:
    # After a reduction the older of the two inputs is still twice as large.
    after_reduction = config.is_reduction(index - 1) if index else config.stem_type == 1
    halve = after_reduction and not config.is_vit
    if config.preproc:
        return "factorized" if halve else "conv", "conv"
    return "stride" if halve else "identity", "identity"


def _reachable_states(config: NetworkConfig) -> list[tuple[int | None, ...]]:
    """Per cell the states of its output, ``None`` for zeros; empty if it has no output."""
    genotype = config.genotype
    outputs = [True, True]
    result: list[tuple[int | None, ...]] = []
    for index in range(config.n_cells):
        reduction = config.is_reduction(index)
        genes = genotype.reduce if reduction else genotype.normal
        states = _reached(genes, outputs[-2:])
        wanted = genotype.reduce_concat if reduction else genotype.normal_concat
        concat = tuple(state if states[state] else None for state in wanted)
        outputs.append(any(states[state] for state in wanted))
        result.append(concat if outputs[-1] else ())
    return result


def _reached(genes: tuple[Gene, ...], inputs: list[bool]) -> list[bool]:
    """Which states of a cell a path leads to, from which of its two inputs one does."""
    states = [*inputs]
    for step in range(0, len(genes), 2):
        states.append(any(n != "none" and states[s] for n, s in genes[step : step + 2]))
    return states


def _alive_operations(
    config: NetworkConfig, concats: list[tuple[int | None, ...]]
) -> tuple[list[list[bool]], list[tuple[bool, bool]]]:
    """Per cell which operations are alive, and which of its two inputs; from the output back."""
    genotype = config.genotype
    count = config.n_cells
    # Outputs of the stem (positions 0 and 1) and of the cells, reachable and wanted.
    reached = [True, True, *(bool(concat) for concat in concats)]
    wanted = [False] * (count + 1) + [reached[-1]]
    ops: list[list[bool]] = [[] for _ in range(count)]
    inputs = [(False, False)] * count
    for index in reversed(range(count)):
        genes = genotype.reduce if config.is_reduction(index) else genotype.normal
        states = _reached(genes, reached[index : index + 2])
        needed = [False] * len(states)
        if wanted[index + 2]:
            for state in concats[index]:
                if state is not None:
                    needed[state] = True
        alive = [False] * len(genes)
        for position in reversed(range(len(genes))):
            name, source = genes[position]
            if needed[2 + position // 2] and name != "none" and states[source]:
                alive[position] = needed[source] = True
        ops[index] = alive
        inputs[index] = (needed[0], needed[1])
        wanted[index] |= needed[0]
        wanted[index + 1] |= needed[1]
    return ops, inputs
