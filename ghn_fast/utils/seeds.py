"""Seeds that depend on several numbers, so that nothing random needs a state of its own."""

from __future__ import annotations

import hashlib


def derive_seed(*key: int | str) -> int:
    """A seed of 63 bits that depends on all parts of a key, in their order."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
