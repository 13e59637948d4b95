"""What a prediction says about itself: what it filled, what it left out, and its seconds."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field

from ghn_fast.hypernet.explain import Explanation


@dataclass
class PredictionReport:
    """What a prediction did. Every parameter of the network is in exactly one of the first two.

    Attributes:
        predicted: Names of the parameters that were predicted, in the network's order.
        skipped: Parameters that were left as they were, with the reason.
        seconds: Wall-clock seconds by stage (capture, encode, propagate, decode, expand, bind) and
            in total.
        batch_statistics: Names of the BatchNorm layers that normalise with batch statistics from
            now on, because running statistics are not predicted.
        partial: What the prediction leaves out or assumes of the forward pass: that it looks at
            values of features behind the last parameter, for instance; ``None`` for nothing.
        warnings: Why predicted parameters may not work in this network, as sentences.
        explanation: Where the network stands among those of training, if that was asked for.
    """

    predicted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    batch_statistics: list[str] = field(default_factory=list)
    partial: str | None = None
    warnings: list[str] = field(default_factory=list)
    explanation: Explanation | None = None

    def warn_skipped(self) -> None:
        """Warn about parameters that keep their values, all in one warning at the caller's line."""
        if not self.skipped:
            return
        name, reason = next(iter(self.skipped.items()))
        total = len(self.skipped) + len(self.predicted)
        warnings.warn(
            f"{len(self.skipped)} of {total} parameters were not predicted and keep their values, "
            f"the first one '{name}': {reason}. ghn.predict(model).skipped lists them all",
            UserWarning,
            stacklevel=3,
        )


class Clock:
    """Adds up the seconds of stages.

    Attributes:
        seconds: Seconds by stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage that began where the last one ended."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
