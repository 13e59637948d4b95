"""Search architectures without training any: rank them by the accuracy of predicted networks.

python examples/search.py --candidates 20
"""

from __future__ import annotations

import argparse
import time

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.vision import accuracy, eval_batches, load_images


def main() -> None:
    """Score candidates on validation images, and test the best and the worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--most-parameters", type=float, default=1e6)
    parser.add_argument("--ckpt", default="ghn2-digits")
    parser.add_argument("--image-size", type=int, default=16)
    chosen = parser.parse_args()

    splits = load_images("digits", image_size=chosen.image_size)
    ghn = ghn_fast.from_pretrained(chosen.ckpt)
    begin = time.perf_counter()
    scored = []
    edges, rules = ghn.config.virtual_edges, ghn.config.graph_rules
    for net in SampledNets("search", chosen.candidates, 0, edges, rules=rules):
        model = net.build(num_classes=splits.num_classes, image_size=splits.image_size)
        size = sum(parameter.numel() for parameter in model.parameters())
        if size > chosen.most_parameters:
            continue
        graph = net.graph_for(num_classes=splits.num_classes, image_size=splits.image_size)
        ghn(model, graph=graph)
        found = accuracy(model, eval_batches(splits.val, splits, 64))
        scored.append((found.top1, net.name, size, model))
    if not scored:
        raise SystemExit(f"none of {chosen.candidates} candidates is that small")
    scored.sort(key=lambda row: row[0], reverse=True)
    seconds = time.perf_counter() - begin
    print(f"{len(scored)} of {chosen.candidates} candidates are small enough; {seconds:.1f} s")
    for top1, name, size, model in (scored[0], scored[-1]):
        test = accuracy(model, eval_batches(splits.test, splits, 64)).top1
        print(f"{name}: {size / 1e6:.2f} M parameters, {top1:.1f} % val, {test:.1f} % test")


if __name__ == "__main__":
    main()
