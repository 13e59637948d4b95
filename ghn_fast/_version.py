"""The version of ghn_fast, written here and nowhere else."""

__version__ = "0.1.0"
