"""Log records and warnings of the command line: one line each, on standard error, by level."""

from __future__ import annotations

import logging
import warnings

import pytest

from ghn_fast.utils import logs


def test_records_and_warnings_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logs.get_logger("ghn_fast.some.module")
    before = warnings.showwarning
    with warnings.catch_warnings(), logs.on_standard_error("prog"):
        warnings.simplefilter("always")
        logs.set_level("info")
        logger.info("step %d", 3)
        logger.debug("not this")
        warnings.warn("two\nlines", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "prog: info: step 3\nprog: warning: two lines\n"
    assert warnings.showwarning is before


def test_everything_is_as_before_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger("ghn_fast")
    before = (root.level, list(root.handlers), root.propagate)
    with logs.on_standard_error("prog"):
        logs.set_level("DEBUG")
    assert (root.level, list(root.handlers), root.propagate) == before
    with pytest.raises(ValueError, match="needs one of debug, info, warning, error"):
        logs.set_level("loud")
