"""DeepNets-1M: the networks, their graphs, the sampler, files and meta-batches."""

from ghn_fast.deepnets.build import build_graph, count_parameters, is_connected, parameter_shapes
from ghn_fast.deepnets.convert import convert
from ghn_fast.deepnets.dataset import (
    SPLITS,
    ArchItem,
    ArchSequence,
    DeepNets,
    SampledNets,
    held_out_keys,
)
from ghn_fast.deepnets.generate import generate
from ghn_fast.deepnets.genotype import PRIMITIVES, Genotype, NetworkConfig
from ghn_fast.deepnets.loader import MAX_NODES, MetaBatch, meta_batches, sample_width
from ghn_fast.deepnets.network import Network
from ghn_fast.deepnets.sampler import SPLIT_SIZES, architecture_key, sample_config
from ghn_fast.deepnets.statistics import describe, statistics_table
from ghn_fast.deepnets.store import FORMATS, splits_in

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
    "MetaBatch",
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
