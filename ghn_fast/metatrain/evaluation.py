"""Periodic evaluation of a hypernetwork in training, on architectures that it is not trained on."""

from __future__ import annotations

import time
import warnings
from typing import Any

from torch import nn

from ghn_fast.deepnets import ArchItem
from ghn_fast.graph import ArchGraph
from ghn_fast.hypernet.ghn import GHN
from ghn_fast.utils.modes import evaluation_mode
from ghn_fast.vision import ImageSplits, evaluate_networks


def evaluate_ghn(
    ghn: GHN,
    items: list[ArchItem],
    splits: ImageSplits,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
) -> dict[str, Any]:
    """Accuracy of predicted validation networks on validation images.

    With several processes each evaluates its share, and all get the result.

    Returns:
        ``top1``, ``top5`` (mean percent), ``standard_error``, ``best`` and ``worst`` top-1,
        ``networks`` (how many were evaluated), ``failed`` and ``seconds``; accuracies are ``None``
        when no network could be evaluated.
    """

    def fill(model: nn.Module, graph: ArchGraph) -> None:
        with warnings.catch_warnings():
            # Parameters that no path uses are not predicted.
            warnings.simplefilter("ignore", UserWarning)
            ghn.predict(model, graph)

    start = time.perf_counter()
    with evaluation_mode(ghn):
        report = evaluate_networks(
            items,
            fill,
            splits,
            batch_size=batch_size,
            images="val",
            device=ghn.device,
            baseline=False,
            seed=seed,
            workers=workers,
        )
    top1, top5 = report.predicted, report.predicted_top5
    return {
        "top1": top1.mean if top1 else None,
        "top5": top5.mean if top5 else None,
        "standard_error": top1.standard_error if top1 else None,
        "best": top1.best if top1 else None,
        "worst": top1.worst if top1 else None,
        "networks": top1.count if top1 else 0,
        "failed": len(report.failed),
        "seconds": time.perf_counter() - start,
    }
