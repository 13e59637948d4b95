"""Optimizers of the hypernetwork, by their names in a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def make_optimizer(
    algorithm: str, model: nn.Module, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer that a recipe names.

    Args:
        algorithm: ``adam``, ``adamw``, or ``muon`` (:class:`MuonWithAdam`).
        model: The hypernetwork.
        lr: Learning rate.
        weight_decay: Part of the gradient for ``adam`` (and of what ``muon`` leaves to it),
            decoupled from it otherwise.

    Raises:
        ValueError: If there is no such algorithm.
    """
    if algorithm == "muon":
        return MuonWithAdam(model, lr, weight_decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if algorithm not in kinds:
        raise ValueError(
            f"algorithm: got {algorithm!r}, needs one of {', '.join((*kinds, 'muon'))}"
        )
    return kinds[algorithm](model.parameters(), lr, weight_decay=weight_decay, fused=True)


class MuonWithAdam(torch.optim.Optimizer):
    """Muon for the matrices of a hypernetwork, Adam for everything else.

    Muon (Keller Jordan, 2024) makes the momentum of a matrix orthogonal before it is subtracted.
    Steps are scaled to the size of Adam's, 0.2 sqrt(max(rows, columns)) as in arXiv 2502.16982, so
    that a learning rate serves both. Matrices are the two-dimensional weights of layers; tables of
    embeddings, biases, scales, and classifiers that are predicted from (layers named ``head``) go
    to Adam, as is usual for the first and last layers of a network.

    Both are torch's; this class gives them one list of groups and one state, so that learning rates
    are set and checkpoints are written as those of any other.

    Args:
        model: The hypernetwork.
        lr: Learning rate of both.
        weight_decay: Decoupled for Muon, part of the gradient for Adam.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        tables = {
            parameter
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for parameter in module.parameters()
        }
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in model.named_parameters():
            is_matrix = parameter.ndim == 2 and parameter not in tables
            (matrices if is_matrix and "head" not in name.split(".") else others).append(parameter)
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(muon)
        if others:
            self._parts.append(torch.optim.Adam(others, lr, weight_decay=weight_decay, fused=True))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._join()

    def _join(self) -> None:
        """Let the parts work on the groups and the state of the whole."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: the parts share their groups and states with it."""
        return {**super().__getstate__(), "_parts": self._parts}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; once both are there, no other.

        Raises:
            ValueError: If the optimizer is made already.
        """
        if len(self.param_groups) == len(self._parts):
            raise ValueError("param_group: MuonWithAdam takes the parameters of its model alone")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both."""
        super().load_state_dict(state_dict)
        self._join()

    def step(self, closure: Any = None) -> Any:
        """Take a step of both.

        Raises:
            ValueError: If there is a closure.
        """
        if closure is not None:
            raise ValueError("closure: got one, but both optimizers would call it; needs None")
        for part in self._parts:
            part.step()
        return None
