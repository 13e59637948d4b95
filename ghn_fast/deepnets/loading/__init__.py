"""Splits as sequences of architectures, and meta-batches of them."""
