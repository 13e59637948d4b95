"""What the package says of its work: one logger, silent unless somebody listens.

    logging.getLogger("ghn_fast").setLevel("INFO")  # in a program with handlers of its own

The command line writes it to standard error, from ``--log-level`` on.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

LOGGER = "ghn_fast"
LEVELS = ("debug", "info", "warning", "error")


def get_logger(module: str) -> logging.Logger:
    """The logger of a module of the package, for its ``__name__``."""
    return logging.getLogger(module)


@contextmanager
def on_standard_error(program: str) -> Iterator[None]:
    """Write log records and Python's warnings to standard error, one line each.

    Args:
        program: What the lines begin with.
    """
    logger = logging.getLogger(LOGGER)
    handler = _Handler(program)
    level, show = logger.level, warnings.showwarning

    def log_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        logger.warning("%s", " ".join(str(message).split()))
        logger.debug("this warning comes from %s:%d (%s)", filename, lineno, category.__name__)

    logger.addHandler(handler)
    # Whoever embeds the command line has a root logger, which would say everything again.
    propagate, logger.propagate = logger.propagate, False
    warnings.showwarning = log_warning
    try:
        yield
    finally:
        warnings.showwarning = show
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


def set_level(name: str) -> None:
    """Say from which level on the package's records are written.

    Raises:
        ValueError: If there is no such level.
    """
    if name.lower() not in LEVELS:
        raise ValueError(f"log level: got {name!r}, needs one of {', '.join(LEVELS)}")
    logging.getLogger(LOGGER).setLevel(name.upper())


class _Handler(logging.Handler):
    """Writes to the standard error of the moment, which tests and notebooks replace."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self.program = program

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"{self.program}: {record.levelname.lower()}: {record.getMessage()}\n"
            sys.stderr.write(text)
            sys.stderr.flush()
        except Exception:  # logging never ends a program
            self.handleError(record)
