"""DeepNets-1M: the networks, their graphs, the sampler, files and meta-batches."""

from ghn_fast.deepnets.architectures.genotype import Genotype, NetworkConfig
from ghn_fast.deepnets.architectures.network import Network
from ghn_fast.deepnets.architectures.primitives import PRIMITIVES
from ghn_fast.deepnets.architectures.spec import is_connected
from ghn_fast.deepnets.files.convert import convert
from ghn_fast.deepnets.files.formats import FORMATS, splits_in
from ghn_fast.deepnets.files.generate import generate
from ghn_fast.deepnets.graphs.build import build_graph
from ghn_fast.deepnets.graphs.sizes import count_parameters, parameter_shapes
from ghn_fast.deepnets.loading.items import ArchItem
from ghn_fast.deepnets.loading.meta_batches import MAX_NODES, meta_batches, sample_width
from ghn_fast.deepnets.loading.splits import (
    SPLITS,
    ArchSequence,
    DeepNets,
    SampledNets,
)
from ghn_fast.deepnets.loading.statistics import describe, statistics_table
from ghn_fast.deepnets.sampling.held_out import held_out_keys
from ghn_fast.deepnets.sampling.sampler import architecture_key, sample_config
from ghn_fast.deepnets.sampling.splits import SPLIT_SIZES

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
