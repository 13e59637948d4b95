"""The distribution of architectures: splits, and random architectures of them."""
