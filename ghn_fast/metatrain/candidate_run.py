"""One run of one candidate network: forward, loss, backward, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from enum import IntEnum
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.metatrain.candidates import Candidate, candidate, candidate_key
from ghn_fast.ops.backend import resolve
from ghn_fast.ops.program_gradient import program_gradient
from ghn_fast.vision.precision import PRECISIONS, autocast

# Per parameter (offset, shape) in the flat buffer, in the order of the buffer.
Ranges = dict[str, tuple[int, tuple[int, ...]]]


class Status(IntEnum):
    """What became of an architecture in a step."""

    OK = 0
    LOSS = 1
    GRADIENT = 2
    MEMORY = 3
    ENGINE = 4


REASONS = {
    Status.LOSS: "the loss is not finite",
    Status.GRADIENT: "a gradient is not finite",
    Status.MEMORY: "out of memory",
    Status.ENGINE: "the GPU's libraries have no engine for one of its layers",
}


class Work(NamedTuple):
    """What all networks of a step have in common.

    Attributes:
        images: Images (B, 3, S, S).
        targets: Class of each image (B,).
        factor: Factor on the loss, a number or a tensor () on the device.
        precision: See :mod:`ghn_fast.vision.precision`.
        device: Where they run.
        num_classes: Number of classes.
        label_smoothing: Of the cross-entropy.
    """

    images: Tensor
    targets: Tensor
    factor: float | Tensor
    precision: str
    device: torch.device
    num_classes: int
    label_smoothing: float = 0.0


class Job:
    """A network to run, with its parts of the flat buffers of parameters and gradients.

    What a replayed network does not need, its module and the views of its parameters, is made when
    it is first asked for.

    Args:
        index: Position of the network among those that run.
        architecture: The architecture.
        places: Where its parameters are in ``flat``, ascending.
        flat, gradient: The flat buffers (P,).
        work: What all networks have in common.
        narrow: The parameters in the type that networks compute in, if they are cast at all.
    """

    def __init__(
        self,
        index: int,
        architecture: Any,
        places: Ranges,
        flat: Tensor,
        gradient: Tensor,
        work: Work,
        narrow: Tensor | None = None,
    ) -> None:
        self.index = index
        self.places = places
        self._architecture = architecture
        self._sizes = {"num_classes": work.num_classes, "image_size": work.images.shape[-1]}
        self._device = work.device
        self._narrows = PRECISIONS[work.precision]
        region = region_of(places)
        self._first = region.start
        self.part, self.gradient = flat[region], gradient[region]
        self.narrow = None if narrow is None else narrow[region]

    @property
    def numel(self) -> int:
        """Number of elements of its part of the flat buffer."""
        return self.part.numel()

    @cached_property
    def key(self) -> Hashable | None:
        """What tells whether two networks are the same function; ``None`` if nothing does."""
        return candidate_key(self._architecture, **self._sizes)

    @cached_property
    def network(self) -> Candidate:
        """The network."""
        return candidate(self._architecture, **self._sizes, device=self._device)

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters."""
        return [shape for _, shape in self.places.values()]

    @cached_property
    def places_in_part(self) -> Ranges:
        """Where the parameters are in its part."""
        return {name: (at - self._first, shape) for name, (at, shape) in self.places.items()}

    @property
    def compiled(self) -> bool:
        """Whether the compiled extension runs the network in one call."""
        return (
            self.network.program is not None
            and self._device.type == "cpu"
            and self.part.dtype == torch.float32
            # Half precision runs under autocast, which is torch's.
            and (self._narrows is None or self.narrow is not None)
            and resolve("program_gradient", "cpu") == "cpu"
        )

    @cached_property
    def offsets(self) -> list[int]:
        """Where the parameters begin in its part."""
        return [offset - self._first for offset, _ in self.places.values()]

    def leaves(self, part: Tensor | None = None) -> dict[str, Tensor]:
        """Parameters as leaves of autograd's graph, by name: views of ``part``, or of its own."""
        found = views(self.part if part is None else part, self.shapes, self.offsets)
        if part is None and self.narrow is not None and self.network.casts:
            # Vectors stay: normalisation is computed in single precision.
            others = views(self.narrow, self.shapes, self.offsets)
            pairs = zip(found, others, strict=True)
            found = [wide if wide.ndim == 1 else narrow for wide, narrow in pairs]
        return {name: view.requires_grad_() for name, view in zip(self.places, found, strict=True)}

    def gradients(self, gradient: Tensor | None = None) -> list[Tensor]:
        """Where the gradients go: views of ``gradient``, or of its own part."""
        return views(self.gradient if gradient is None else gradient, self.shapes, self.offsets)


def region_of(places: Ranges) -> slice:
    """The part of the flat buffer that holds all parameters of a network."""
    if not places:
        return slice(0, 0)
    first = next(iter(places.values()))[0]
    offset, shape = next(reversed(places.values()))
    return slice(first, offset + math.prod(shape))


def attempt(job: Job, work: Work, seed: int) -> Tensor:
    """Run a network once: status, loss and correct images (3,), on its device.

    Gradients are in the job's part of the buffer; zeros, if it does not fit into memory, or if the
    libraries of the device have no engine for one of its layers even when they are asked in the
    plainest way: without channels last, and without cuDNN.
    """
    result = _try(job, work, seed)
    if result is Status.ENGINE:
        with torch.backends.cudnn.flags(enabled=False):
            result = _try(job, work._replace(images=work.images.contiguous()), seed)
    if isinstance(result, Tensor):
        return result
    # Out of the handler of the error, whose traceback holds the activations.
    if work.device.type == "cuda":
        torch.cuda.empty_cache()
    job.gradient.zero_()
    return failed(result, work.device)


def failed(status: Status, device: torch.device) -> Tensor:
    """Status, loss and correct images (3,) of a network without a result, made on the device."""
    row = torch.full((3,), float(status), device=device)
    row[1:2] = math.nan
    row[2:] = 0.0
    return row


def _try(job: Job, work: Work, seed: int) -> Tensor | Status:
    if job.network.generator is not None:
        job.network.generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    try:
        if job.compiled:
            return run_compiled(job, work)
        return forward_backward(job.network, job.leaves(), job.gradients(), job.gradient, work)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return Status.MEMORY
        if lacks_engine(error):
            return Status.ENGINE
        raise


def run_compiled(job: Job, work: Work) -> Tensor:
    """:func:`forward_backward` in one call of the compiled extension, without Python's lock."""
    network = job.network
    assert network.program is not None
    result = program_gradient(
        network.program,
        job.places_in_part,
        job.part,
        job.narrow,
        work.images,
        work.targets,
        job.gradient,
        factor=float(work.factor),
        label_smoothing=work.label_smoothing,
        generator=network.generator,
    )
    return torch.tensor(result, dtype=torch.float32)


def forward_backward(
    network: Candidate,
    leaves: dict[str, Tensor],
    gradients: list[Tensor],
    region: Tensor,
    work: Work,
) -> Tensor:
    """Gradients into ``gradients``, views of ``region``; status, loss and correct images (3,).

    Nothing in here waits for the device.
    """
    narrow = PRECISIONS[work.precision]
    if any(leaf.dtype == narrow for leaf in leaves.values()):
        logits = network(leaves, work.images.to(narrow))
    else:
        with autocast(work.precision, work.device):
            logits = network(leaves, work.images)
    logits = logits.float()
    loss = F.cross_entropy(logits, work.targets, label_smoothing=work.label_smoothing)
    factor = work.factor
    if not isinstance(factor, Tensor):
        factor = torch.full_like(loss, factor)
    found = torch.autograd.grad(loss, list(leaves.values()), factor, allow_unused=True)
    with torch.no_grad():
        copy_gradients(gradients, found)
        loss = loss.detach()
        status = torch.where(loss.isfinite(), 0.0, float(Status.LOSS))
        if region.numel():
            extremes = torch.stack(region.aminmax())
            good = extremes.isfinite().all()
            status = torch.where((status == 0) & ~good, float(Status.GRADIENT), status)
            region.masked_fill_(status != 0, 0.0)
        correct = (logits.argmax(1) == work.targets).sum()
        return torch.stack((status, loss, correct.float()))


def copy_gradients(into: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
    """Copy gradients into contiguous views of a buffer, as many as can be in one call.

    torch's multi-tensor copy takes one kernel for all pairs if the strides and types of each agree,
    and a call for each pair if those of a single one do not. In a network with channels last the
    gradients of some kernels do not; and those of 1x1 kernels only seem so, by the strides of
    dimensions of size one.
    """
    alike: tuple[list[Tensor], list[Tensor]] = [], []
    others: tuple[list[Tensor], list[Tensor]] = [], []
    for to, have in zip(into, found, strict=True):
        if have is None:
            continue
        same = have.is_contiguous() and have.dtype == to.dtype
        if same and have.stride() != to.stride():
            have = have.as_strided(to.shape, to.stride())
        for side, tensor in zip(alike if same else others, (to, have), strict=True):
            side.append(tensor)
    for to_all, have_all in (alike, others):
        if to_all:
            torch._foreach_copy_(to_all, have_all)


def views(flat: Tensor, shapes: Sequence[tuple[int, ...]], offsets: Sequence[int]) -> list[Tensor]:
    """Views of pieces of a contiguous tensor (n,), without gradient history.

    Args:
        flat: The tensor.
        shapes: Shape of each piece.
        offsets: Where each piece begins.
    """
    first = flat.storage_offset()
    with torch.no_grad():
        return [
            flat.as_strided(shape, _strides(shape), first + offset)
            for shape, offset in zip(shapes, offsets, strict=True)
        ]


@lru_cache(maxsize=4096)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


# What the allocators of torch, the C++ library, oneDNN, CUDA and CUDA's libraries say.
_OUT_OF_MEMORY = (
    *("can't allocate", "not enough memory", "bad_alloc", "out of memory"),
    *("could not create a primitive", "could not create a memory", "could not execute a primitive"),
    # CUBLAS_STATUS_, CUDNN_STATUS_, ...
    *("ALLOC_FAILED", "ALLOCATION_FAILED", "cudaErrorMemoryAllocation"),
)

# What cuDNN and torch say where no kernel of the libraries can do what is asked.
_NO_ENGINE = (
    *("unable to find an engine", "valid cuDNN algorithm", "No valid engine configs"),
    "CUDNN_STATUS_NOT_SUPPORTED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, on a GPU or a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def lacks_engine(error: BaseException) -> bool:
    """Whether an exception says that a GPU's libraries have nothing for a layer of some sizes."""
    return any(words in str(error) for words in _NO_ENGINE)
