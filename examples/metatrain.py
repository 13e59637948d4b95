"""Meta-train a hypernetwork on a folder of your images, and predict with it.

    python examples/metatrain.py --images photos --steps 2000 --out runs/photos

The folder is a tree in the ImageFolder layout: one folder per class, or ``train`` and ``val`` with
one folder per class each. The same command continues the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.metatrain import TrainConfig, train
from ghn_fast.vision import accuracy, eval_batches, load_images


def main() -> None:
    """Train, then evaluate a network that was not trained on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="Folder of images, or digits.")
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--hid", type=int, default=32)
    parser.add_argument("--meta-batch", type=int, default=4)
    parser.add_argument("--max-nodes", type=int, default=1000)
    chosen = parser.parse_args()

    dataset = chosen.images if chosen.images == "digits" else f"folder:{chosen.images}"
    config = TrainConfig(
        dataset=dataset,
        image_size=chosen.image_size,
        steps=chosen.steps,
        hid=chosen.hid,
        meta_batch=chosen.meta_batch,
        max_nodes=chosen.max_nodes,
        max_channels=64,
    )
    result = train(
        config,
        chosen.out,
        on_step=lambda metrics, total: (
            print(f"step {metrics['step']} of {total}: loss {metrics['loss']:.3f}", flush=True)
            if metrics["step"] % 50 == 0 or metrics["step"] == total
            else None
        ),
    )
    if result.checkpoint is None:
        raise SystemExit("interrupted before the first checkpoint; the same command continues")
    ghn = ghn_fast.from_pretrained(chosen.out)
    splits = load_images(dataset, image_size=chosen.image_size)
    net = SampledNets("test", 1, 0)[0]
    model = net.build(num_classes=splits.num_classes, image_size=splits.image_size)
    ghn(model)
    top1 = accuracy(model, eval_batches(splits.test, splits, 64)).top1
    print(f"an architecture that it has never seen: {top1:.1f} % of the test images")


if __name__ == "__main__":
    main()
