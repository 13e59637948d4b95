"""The scale of the loss that half precision needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LossScale:
    """Factor on the loss that keeps half-precision gradients in range (arXiv 1710.03740, 3.2).

    It is halved after a step in which gradients overflowed, and doubled after
    ``growth_interval`` steps in which none did.

    Attributes:
        value: The factor.
        good_steps: Steps since the last change.
        growth_interval: See above.
    """

    value: float = 65536.0
    good_steps: int = 0
    growth_interval: int = 2000

    def update(self, overflowed: bool) -> None:
        """Take note of a step."""
        if overflowed:
            self.value = max(self.value / 2, 1.0)
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps >= self.growth_interval:
            self.value = min(self.value * 2, 2.0**24)
            self.good_steps = 0

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """From a checkpoint."""
        self.value, self.good_steps = float(state["value"]), int(state["good_steps"])
