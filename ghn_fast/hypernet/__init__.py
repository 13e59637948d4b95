"""The hypernetwork: encode, propagate, decode, expand, bind, and checkpoints."""

from ghn_fast.hypernet.checkpoint import from_pretrained, save_pretrained
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.ghn import GHN
from ghn_fast.hypernet.predictor import Predictor
from ghn_fast.hypernet.propagate import propagators, register_propagator
from ghn_fast.hypernet.report import PredictionReport

__all__ = [
    "GHN",
    "GHNConfig",
    "PredictionReport",
    "Predictor",
    "from_pretrained",
    "propagators",
    "register_propagator",
    "save_pretrained",
]
