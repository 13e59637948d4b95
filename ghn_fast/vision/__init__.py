"""Image data, and evaluation of networks whose parameters were predicted."""

from __future__ import annotations

from ghn_fast.hypernet.batch_statistics import track_running_statistics, use_batch_statistics
from ghn_fast.vision.batches import eval_batches, train_batches
from ghn_fast.vision.data import DATASETS, load_images
from ghn_fast.vision.evaluate import Accuracy, EvaluationItem, accuracy, evaluate_networks
from ghn_fast.vision.images import ImageSet, ImageSplits
from ghn_fast.vision.results import ArchitectureResult, EvaluationReport, Summary, summarise

__all__ = [
    "DATASETS",
    "Accuracy",
    "ArchitectureResult",
    "EvaluationItem",
    "EvaluationReport",
    "ImageSet",
    "ImageSplits",
    "Summary",
    "accuracy",
    "eval_batches",
    "evaluate_networks",
    "load_images",
    "summarise",
    "track_running_statistics",
    "train_batches",
    "use_batch_statistics",
]
