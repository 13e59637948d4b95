"""Language models to train on: text as bytes, and GPT-2s of the sizes of GPTs-1K.

Text takes the place of images, and the next byte that of a class: a batch is (B, T) numbers from 0
to 255, its targets the (B T) bytes that follow each. So a step, its candidate networks and its
gradient are those of image data (:mod:`ghn_fast.metatrain.step`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast.graph.rules import GraphRules
from ghn_fast.metatrain.sized_networks import SizedNetwork, draw_width
from ghn_fast.utils.optional import require
from ghn_fast.utils.seeds import derive_seed

PREFIX = "text:"
GENERATED = "generated"
ARCHITECTURES = "gpts"
VOCABULARY = 256
_CONTEXT = 64
_GENERATED_BYTES = 100_000
# Of GPTs-1K (arXiv 2405.16287): smallest and largest width by the number of layers, in steps of 8.
_WIDTHS = {3: (176, 256), 4: (128, 176), 5: (128, 176), **dict.fromkeys(range(6, 10), (72, 176))}
_STEP, _HEADS = 8, 8
_SMALLEST = 16

# A small grammar: enough structure that a network of some thousand weights learns it.
_GRAMMAR = {
    "S": ("N V N. ", "N V N and N V. ", "if N V, then N V N. "),
    "N": ("the A B", "a B", "the B of the B"),
    "A": ("small", "green", "old", "quiet", "heavy"),
    "B": ("river", "lamp", "house", "engine", "garden", "letter", "road"),
    "V": ("carries", "follows", "opens", "finds", "leaves"),
}


@dataclass(frozen=True)
class TextSplits:
    """Text to train on.

    Attributes:
        name: Its name.
        train: Its bytes, uint8 (N,).
        image_size: Number of bytes T that a network reads at a time; it has the name that it has
            for images.
        num_classes: Number of different bytes.
    """

    name: str
    train: Tensor
    image_size: int
    num_classes: int = VOCABULARY


def is_text(dataset: str) -> bool:
    """Whether a data set's name is that of text."""
    return dataset.startswith(PREFIX)


def load_text(name: str, root: str | None = None, context: int | None = None) -> TextSplits:
    """Read text.

    Args:
        name: ``text:PATH``, or ``text:generated`` for 100 kB from a small grammar, always the same.
        root: Folder that PATH is relative to.
        context: Number of bytes that a network reads at a time, 64 by default.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is shorter than one example, or ``context`` is below 1.
    """
    size = _CONTEXT if context is None else context
    if size < 1:
        raise ValueError(f"image_size: got {size} bytes of text, needs at least 1")
    source = name.removeprefix(PREFIX)
    if source == GENERATED:
        data = generated_text().encode()
    else:
        path = Path(root or ".", source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"dataset: got {name!r}, but {path} is no file")
        data = path.read_bytes()
    if len(data) < size + 1:
        raise ValueError(f"dataset: {name} has {len(data)} bytes, needs at least {size + 1}")
    return TextSplits(name, torch.frombuffer(bytearray(data), dtype=torch.uint8), size)


def generated_text(length: int = _GENERATED_BYTES) -> str:
    """Text of a small grammar, always the same."""
    generator = torch.Generator().manual_seed(derive_seed("text", 0))

    def write(text: str) -> str:
        return "".join(
            write(
                _GRAMMAR[letter][int(torch.randint(len(_GRAMMAR[letter]), (), generator=generator))]
            )
            if letter in _GRAMMAR
            else letter
            for letter in text
        )

    parts, size = [], 0
    while size < length:
        parts.append(write("S"))
        size += len(parts[-1])
    return "".join(parts)[:length]


def text_batches(
    splits: TextSplits,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: bytes (B, T) and those that follow each (B T), int64.

    Step k depends on (seed, k) alone.
    """
    text, size = splits.train.to(device), splits.image_size
    step = start_step
    while True:
        generator = torch.Generator().manual_seed(derive_seed("text", seed, step))
        first = torch.randint(len(text) - size, (batch_size, 1), generator=generator)
        rows = text[(first + torch.arange(size + 1)).to(device)].long()
        yield rows[:, :-1].contiguous(), rows[:, 1:].reshape(-1)
        step += 1


class LanguageModel(nn.Module):
    """Logits (B T, V) of bytes (B, T).

    Args:
        model: A language model of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, symbols: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=symbols, use_cache=False).logits
        return logits.flatten(0, 1)


@dataclass(frozen=True)
class GPTItem(SizedNetwork):
    """A GPT-2 to train on; what a step needs of an architecture.

    Attributes:
        index: Its number.
        layers, width: Its size.
        context: Number of symbols that it reads.
        virtual_edges, rules: Of its graph.
    """

    num_classes = VOCABULARY

    index: int
    layers: int
    width: int
    context: int
    virtual_edges: int
    rules: GraphRules

    @property
    def name(self) -> str:
        """Its name, for example ``gpt-5-3x176``."""
        return f"gpt-{self.index}-{self.layers}x{self.width}"

    def build(self, num_classes: int = VOCABULARY, image_size: int | None = None) -> nn.Module:
        """The network, untied, without dropout."""
        transformers = require("transformers", "transformers", "language models")
        config = transformers.GPT2Config(
            vocab_size=num_classes,
            n_positions=self.context,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=_HEADS,
            tie_word_embeddings=False,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        return LanguageModel(transformers.GPT2LMHeadModel(config))

    @property
    def image_size(self) -> int:  # type: ignore[override]
        """Number of symbols; it has the name that it has for images."""
        return self.context

    def size(self, num_classes: int, image_size: int) -> Hashable:
        """All that its graph depends on beside virtual edges and rules."""
        return self.layers, self.width, self.context, num_classes

    def example(self, image_size: int) -> dict[str, Any]:
        """A few symbols."""
        return {"example_inputs": (torch.zeros(1, min(3, self.context), dtype=torch.int64),)}


def gpt_batches(
    meta_batch: int,
    *,
    seed: int,
    start_step: int,
    context: int,
    widths: tuple[int, int],
    virtual_edges: int,
    rules: GraphRules,
) -> Iterator[list[Any]]:
    """Meta-batches of GPT-2s without end; step k depends on (seed, k) alone.

    Layers are drawn from 3 to 9, widths from those of GPTs-1K for the number of layers, as far as
    they are within ``widths``.
    """
    step = start_step
    while True:
        generator = torch.Generator().manual_seed(derive_seed("gpts", seed, step))
        items = []
        for place in range(meta_batch):
            layers = int(torch.randint(3, 10, (), generator=generator))
            width = draw_width(
                _WIDTHS[layers], widths, step=_STEP, smallest=_SMALLEST, generator=generator
            )
            number = step * meta_batch + place
            items.append(GPTItem(number, layers, width, context, virtual_edges, rules))
        yield items
        step += 1
