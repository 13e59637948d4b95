"""Predict parameters, fine-tune them, and compare with a random start.

python examples/finetune.py --network deepnets:test:0 --steps 60
"""

from __future__ import annotations

import argparse

import ghn_fast
from ghn_fast.studies import TrainingSettings, find_networks, train_network
from ghn_fast.vision import load_images


def main() -> None:
    """Train one network from two starts and print both accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="deepnets:test:0", help="As `ghn-fast sgd` takes it.")
    parser.add_argument("--ckpt", default="ghn2-digits")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--channels", type=int, help="Of networks made of cells.")
    parser.add_argument("--image-size", type=int, default=16)
    chosen = parser.parse_args()

    splits = load_images(chosen.dataset, image_size=chosen.image_size)
    network = find_networks([chosen.network], channels=chosen.channels)[0]
    settings = TrainingSettings(steps=chosen.steps, evaluations=2)
    ghn = ghn_fast.from_pretrained(chosen.ckpt)
    for start in ("random", "predicted"):
        model = network.build(splits.num_classes, splits.image_size)
        if start == "predicted":
            report = ghn.predict(model)
            print(f"predicted {len(report.predicted)} tensors, skipped {len(report.skipped)}")
            # Fine-tuning collects running statistics as any training does.
            ghn_fast.track_running_statistics(model)
        result = train_network(model, splits, settings)
        before, after = result.curve.points[0].top1, result.curve.points[-1].top1
        print(f"{start} start: {before:.1f} %, after {chosen.steps} steps {after:.1f} %")


if __name__ == "__main__":
    main()
