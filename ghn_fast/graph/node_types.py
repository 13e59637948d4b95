"""The fifteen node types of an architecture graph, in the index order of the published models."""

from __future__ import annotations

from typing import Final

NODE_TYPES: Final[tuple[str, ...]] = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)
"""Names of the node types; the position of a name is its index in the type embedding."""

LANGUAGE_NODE_TYPES: Final[tuple[str, ...]] = (*NODE_TYPES, "rmsnorm", "rot_emb", "gate")
"""The same with those of language models behind them (arXiv 2405.16287)."""

NODE_TYPE_INDEX: Final[dict[str, int]] = {
    name: index for index, name in enumerate(LANGUAGE_NODE_TYPES)
}
"""Index of each node type in the type embedding."""
