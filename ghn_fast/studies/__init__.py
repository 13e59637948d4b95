"""What predicted parameters are for: baselines, fine-tuning, properties, search, detection."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded at first use: studies need libraries that others do not.
_HOME = {
    "Network": "ghn_fast.studies.networks",
    "TrainingCurve": "ghn_fast.studies.curves",
    "TrainingSettings": "ghn_fast.studies.training",
    "embed_architectures": "ghn_fast.studies.embeddings",
    "evaluate_splits": "ghn_fast.studies.all_splits",
    "few_shot": "ghn_fast.studies.subsets",
    "find_networks": "ghn_fast.studies.networks",
    "finetune_networks": "ghn_fast.studies.finetune",
    "frechet_distance": "ghn_fast.studies.embeddings",
    "initialise": "ghn_fast.studies.initialisation",
    "predict_properties": "ghn_fast.studies.properties",
    "search_architectures": "ghn_fast.studies.search",
    "train_detectors": "ghn_fast.studies.detection",
    "train_networks": "ghn_fast.studies.sgd",
    "train_network": "ghn_fast.studies.training",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
