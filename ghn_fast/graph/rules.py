"""Rules by which networks become architecture graphs.

A hypernetwork is trained on graphs of one kind, and reads graphs of another kind wrongly without
any sign of it. So the rules are part of its configuration (``GHNConfig.rules``), of what a capture
is asked for, and of the key by which captured graphs are found again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ghn_fast.utils.settings import Section, setting


@dataclass(frozen=True)
class GraphRules(Section):
    """What is a node, and which parameters have one.

    Attributes:
        blocks: How attention and squeeze-and-excitation are recognised. ``"places"``: by the places
            of operations in the order of the graph, as DeepNets-1M was made (arXiv 2110.13100);
            squeeze-and-excitation blocks keep their pool, a mean without ``keepdim`` has no node.
            ``"structure"``: by what they compute (arXiv 2303.04143): a softmax that mixes values is
            an ``msa`` node, a product with a gate computed from means a ``cse`` node without the
            pool; every other mean over positions is a ``glob_avg`` node.
        vectors: Whether scales, shifts and tokens that belong to no layer (LayerScale, class
            tokens) are predicted: ``"predict"`` or ``"keep"``.
        positions: Tables of positions (1, n, c): ``"skip"`` leaves them out, ``"grid"`` predicts
            them where n, or n - 1 behind a token, is the number of positions of a square grid.
        embeddings: Tables that are read by index (``nn.Embedding``): ``"skip"`` or ``"predict"``.
        classifier: What has the classifier's own heads. ``"matrix"``: a final matrix, with or
            without its bias. ``"pair"``: the last but one node if it is a weight, and the last one
            if it is a bias; a final mean comes before the layer that it follows (SqueezeNet).
        bias_free: Linear layers without bias: ``"inside"`` the path of features, or ``"beside"``
            it, hanging off the input, as the published code of LoGAH has them.
        types: Which node types there are: ``"vision"``, or ``"language"`` with RMS normalisation
            and gates of MLPs (:data:`ghn_fast.graph.node_types.LANGUAGE_NODE_TYPES`).
        cells: Edges of DeepNets-1M: ``"stored"``, or ``"corrected"`` as GHN-3 was trained on.
    """

    blocks: str = setting("places", choices=("places", "structure"))
    vectors: str = setting("predict", choices=("predict", "keep"))
    positions: str = setting("skip", choices=("skip", "grid"))
    embeddings: str = setting("skip", choices=("skip", "predict"))
    classifier: str = setting("matrix", choices=("matrix", "pair"))
    bias_free: str = setting("inside", choices=("inside", "beside"))
    types: str = setting("vision", choices=("vision", "language"))
    cells: str = setting("stored", choices=("stored", "corrected"))

    GHN2: ClassVar[GraphRules]
    """Graphs of GHN-1 and GHN-2."""
    GHN2_PUBLISHED: ClassVar[GraphRules]
    """The same as the published code has them: LayerScale and tokens keep their values."""
    GHN3: ClassVar[GraphRules]
    """Graphs of GHN-3, and of LoGAH for vision transformers."""

    LANGUAGE: ClassVar[GraphRules]
    """Graphs of language models."""
    LANGUAGE_PUBLISHED: ClassVar[GraphRules]
    """The same as the published code of LoGAH has them, with its defect on layers without bias."""

    @staticmethod
    def named(name: str) -> GraphRules:
        """The rules of a name: one of :data:`RULES`.

        Raises:
            ValueError: If there are none of that name.
        """
        if name not in RULES:
            raise ValueError(f"rules: got {name!r}, needs one of {', '.join(RULES)}")
        return RULES[name]


GraphRules.GHN2 = GraphRules()
GraphRules.GHN2_PUBLISHED = replace(GraphRules.GHN2, vectors="keep")
GraphRules.GHN3 = GraphRules(
    blocks="structure",
    vectors="keep",
    positions="grid",
    embeddings="predict",
    classifier="pair",
    cells="corrected",
)
GraphRules.LANGUAGE = replace(GraphRules.GHN3, cells="stored", types="language")
GraphRules.LANGUAGE_PUBLISHED = replace(GraphRules.LANGUAGE, bias_free="beside")

RULES = {
    "ghn2": GraphRules.GHN2,
    "ghn2-published": GraphRules.GHN2_PUBLISHED,
    "ghn3": GraphRules.GHN3,
    "language": GraphRules.LANGUAGE,
    "language-published": GraphRules.LANGUAGE_PUBLISHED,
}
"""Rules by name, as configurations have them."""
