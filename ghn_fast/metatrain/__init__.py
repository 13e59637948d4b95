"""Meta-training of hypernetworks."""

from ghn_fast.metatrain.config import TrainConfig, read_config
from ghn_fast.metatrain.run import RunResult, train

__all__ = ["RunResult", "TrainConfig", "read_config", "train"]
