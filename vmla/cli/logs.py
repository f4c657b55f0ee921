"""What the code logs, on the error stream: a line each, from the level on that the user asked for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vmla.cli.terminal import say

PACKAGES = ("bench", "runtime", "export", "vmla", "plugins")
LEVELS = ("debug", "info", "warning", "error")


class LineHandler(logging.Handler):
    """Says each record in one printable line; a warning or an error is called so."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        serious = record.levelno >= logging.WARNING
        say(f"{record.levelname.lower() + ': ' if serious else ''}{record.getMessage()}", err=True)


def default_level() -> str:
    """What is being loaded is said on a terminal, and to nobody's log file."""
    return "info" if sys.stderr.isatty() else "warning"


@contextmanager
def logging_to_stderr(level: str) -> Iterator[None]:
    """Inside, our packages log to the error stream from `level` on, in place of any such stream before."""
    handler, loggers = LineHandler(), [logging.getLogger(name) for name in PACKAGES]
    before = [(logger.level, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.handlers = [*(h for h in logger.handlers if not isinstance(h, LineHandler)), handler]
        logger.setLevel(level.upper())
    try:
        yield
    finally:
        for logger, (former_level, former_handlers) in zip(loggers, before, strict=True):
            logger.setLevel(former_level)
            logger.handlers = former_handlers
