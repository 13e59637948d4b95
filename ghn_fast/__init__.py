"""Graph hypernetworks: predict all parameters of a neural network in one forward pass.

    import ghn_fast, torchvision

    ghn = ghn_fast.from_pretrained("ghn2-digits")
    model = ghn(torchvision.models.resnet50(num_classes=10))

See arXiv 2110.13100 (GHN-2 and DeepNets-1M), arXiv 1810.05749 (GHN-1), arXiv 2303.04143 (GHN-3) and
arXiv 2405.16287 (LoGAH).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ghn_fast._version import __version__

if TYPE_CHECKING:
    from ghn_fast import deepnets
    from ghn_fast.capturing import CaptureError, capture
    from ghn_fast.graph import NODE_TYPES, ArchGraph
    from ghn_fast.hypernet import (
        GHN,
        GHNConfig,
        PredictionReport,
        Predictor,
        from_pretrained,
        propagators,
        register_propagator,
        save_pretrained,
    )
    from ghn_fast.hypernet.batch_statistics import track_running_statistics, use_batch_statistics
    from ghn_fast.ops.backend import backend

# Loaded at first use, so that importing the package costs little more than importing torch.
_HOME = {
    "GHN": "ghn_fast.hypernet",
    "GHNConfig": "ghn_fast.hypernet",
    "NODE_TYPES": "ghn_fast.graph",
    "ArchGraph": "ghn_fast.graph",
    "CaptureError": "ghn_fast.capturing",
    "PredictionReport": "ghn_fast.hypernet",
    "Predictor": "ghn_fast.hypernet",
    "backend": "ghn_fast.ops.backend",
    "capture": "ghn_fast.capturing",
    "from_pretrained": "ghn_fast.hypernet",
    "propagators": "ghn_fast.hypernet",
    "register_propagator": "ghn_fast.hypernet",
    "save_pretrained": "ghn_fast.hypernet",
    "track_running_statistics": "ghn_fast.hypernet.batch_statistics",
    "use_batch_statistics": "ghn_fast.hypernet.batch_statistics",
}
_ROOMS = (
    *("capturing", "commands", "deepnets", "drawing", "graph", "hypernet", "metatrain", "models"),
    *("ops", "studies", "utils", "vision"),
)

__all__ = [
    "GHN",
    "NODE_TYPES",
    "ArchGraph",
    "CaptureError",
    "GHNConfig",
    "PredictionReport",
    "Predictor",
    "__version__",
    "backend",
    "capture",
    "deepnets",
    "from_pretrained",
    "propagators",
    "register_propagator",
    "save_pretrained",
    "track_running_statistics",
    "use_batch_statistics",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"ghn_fast.{name}")
    raise AttributeError(f"module 'ghn_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})
