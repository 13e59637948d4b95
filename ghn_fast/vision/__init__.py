"""Image data, and evaluation of networks whose parameters were predicted."""

from __future__ import annotations

from ghn_fast.hypernet.batch_statistics import track_running_statistics, use_batch_statistics
from ghn_fast.vision.batches import eval_batches, train_batches
from ghn_fast.vision.data import DATASETS, load_images
from ghn_fast.vision.evaluate import Accuracy, EvaluationItem, accuracy, evaluate_networks
from ghn_fast.vision.images import ImageSet, ImageSplits
from ghn_fast.vision.noise import noisy_batches
from ghn_fast.vision.results import ArchitectureResult, EvaluationReport, Summary, summarise
from ghn_fast.vision.running_statistics import collect_running_statistics
from ghn_fast.vision.small_images import fit_to_images

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
    "collect_running_statistics",
    "eval_batches",
    "evaluate_networks",
    "fit_to_images",
    "load_images",
    "noisy_batches",
    "summarise",
    "track_running_statistics",
    "train_batches",
    "use_batch_statistics",
]
