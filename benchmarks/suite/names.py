"""Names inside the package that cases need, wherever the measured revision has them.

The cases of this checkout run with the package of older revisions, too, in which a module may have
another name. What ``ghn_fast``, ``ghn_fast.deepnets`` and ``ghn_fast.graph`` export is imported
from there; every other name is looked up here, by the case that needs it, so that a revision
without it lacks that case alone.
"""

from __future__ import annotations

import importlib
from typing import Any

# Where each name is: in this checkout first, then in older revisions. An entry goes when no
# revision that has it is compared any more.
PLACES: dict[str, tuple[str, ...]] = {
    "GatedGNN": ("ghn_fast.hypernet.propagate",),
    "GraphBatch": ("ghn_fast.graph.batch",),
    "plan_decoding": ("ghn_fast.hypernet.decode_plan", "ghn_fast.hypernet.expand"),
    "decode": ("ghn_fast.hypernet.decode", "ghn_fast.hypernet.expand"),
    "collate_edges": ("ghn_fast.ops.collate_edges",),
    "expand_params": ("ghn_fast.ops.expand_params",),
    "graph_attention": ("ghn_fast.ops.graph_attention",),
    "depthwise_conv2d": ("ghn_fast.ops.depthwise_conv2d",),
    "batch_norm_act": ("ghn_fast.ops.batch_norm_act",),
    "shortest_distances": ("ghn_fast.ops.shortest_distances",),
    "generate": ("ghn_fast.deepnets.files.generate", "ghn_fast.deepnets"),
    "make_record": ("ghn_fast.deepnets.files.generate", "ghn_fast.deepnets.generate"),
    "Executor": ("ghn_fast.metatrain.executor",),
    "MetaTrainer": ("ghn_fast.metatrain.step",),
}


def find(name: str) -> Any:
    """Find the object of a name at the first place that has it.

    Raises:
        ImportError: If no place has it.
    """
    for place in PLACES[name]:
        try:
            return getattr(importlib.import_module(place), name)
        except ModuleNotFoundError as error:
            # A library that is missing is another matter.
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise
        except AttributeError:
            pass
    raise ImportError(f"{name} is in none of {', '.join(PLACES[name])}")
