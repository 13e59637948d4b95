"""Requests to stop."""

from __future__ import annotations

import signal

from ghn_fast.utils.signals import stop_requests


def test_stop_requests_restore_the_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
