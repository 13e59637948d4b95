"""Copies to a GPU that nobody waits for, and that are kept for the next call."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Sent(Generic[T]):
    """Something whose tensors were just copied to a device, on the stream that is current.

    The next one who asks may be about to use it on another stream, which has to wait for the copy;
    the host does not.

    Args:
        value: What was copied.
        device: Where to.
    """

    def __init__(self, value: T, device: torch.device) -> None:
        self._value = value
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._device = device
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def get(self) -> T:
        """The value, for work on the stream that is current now."""
        # What is captured was used before, in a warm-up that the capture comes after.
        if self._event is not None and not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream(self._device).wait_event(self._event)
        return self._value
