"""DeepNets-1M: the networks, their graphs, the sampler, files and meta-batches."""

from ghn_fast.deepnets.architectures.genotype import PRIMITIVES, Genotype, NetworkConfig
from ghn_fast.deepnets.architectures.network import Network
from ghn_fast.deepnets.files.convert import convert
from ghn_fast.deepnets.files.formats import FORMATS, splits_in
from ghn_fast.deepnets.files.generate import generate
from ghn_fast.deepnets.graphs.build import (
    build_graph,
    count_parameters,
    is_connected,
    parameter_shapes,
)
from ghn_fast.deepnets.loading.dataset import (
    SPLITS,
    ArchItem,
    ArchSequence,
    DeepNets,
    SampledNets,
    held_out_keys,
)
from ghn_fast.deepnets.loading.meta_batches import MAX_NODES, meta_batches, sample_width
from ghn_fast.deepnets.loading.statistics import describe, statistics_table
from ghn_fast.deepnets.sampler import SPLIT_SIZES, architecture_key, sample_config

__all__ = [
    "FORMATS",
    "MAX_NODES",
    "PRIMITIVES",
    "SPLITS",
    "SPLIT_SIZES",
    "ArchItem",
    "ArchSequence",
    "DeepNets",
    "Genotype",
    "Network",
    "NetworkConfig",
    "SampledNets",
    "architecture_key",
    "build_graph",
    "convert",
    "count_parameters",
    "describe",
    "generate",
    "held_out_keys",
    "is_connected",
    "meta_batches",
    "parameter_shapes",
    "sample_config",
    "sample_width",
    "splits_in",
    "statistics_table",
]
