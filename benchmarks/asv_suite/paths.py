"""The ways through the package: capture, prediction, data, training."""

from __future__ import annotations

from .base import Suite, of


@of("capture", "call")
class Capture(Suite):
    """Network to architecture graph."""


@of("predict_cold", "call")
class PredictCold(Suite):
    """Prediction for a network that has not been seen."""


@of("predict_warm", "call")
class PredictWarm(Suite):
    """Prediction for a network whose structure is known."""


@of("loader", "call")
class Loader(Suite):
    """A meta-batch of sampled architectures with their graphs."""


@of("generator", "call")
class Generator(Suite):
    """Two architectures sampled and described for a file."""


@of("meta_step", "call")
class MetaStep(Suite):
    """One step of meta-training on 8 images."""
