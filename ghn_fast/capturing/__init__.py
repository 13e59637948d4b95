"""From an ``nn.Module`` to an architecture graph.

The room is not called ``capture``: that is the name of the function, :func:`ghn_fast.capture`.
"""

from ghn_fast.capturing.cache import CacheInfo, cache_info, clear_cache
from ghn_fast.capturing.capture import CaptureError, capture

__all__ = ["CacheInfo", "CaptureError", "cache_info", "capture", "clear_cache"]
