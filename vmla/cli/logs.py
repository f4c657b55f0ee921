"""Logging to standard error: one line for each record, from the level that the user asked for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vmla.cli.terminal import say

PACKAGES = ("bench", "runtime", "export", "vmla", "plugins")
LEVELS = ("debug", "info", "warning", "error")


class LineHandler(logging.Handler):
    """Prints each record as one printable line, with `warning:` or `error:` before those of these levels."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record as one line, without any character that a terminal would obey."""
        serious = record.levelno >= logging.WARNING
        say(f"{record.levelname.lower() + ': ' if serious else ''}{record.getMessage()}", err=True)


def default_level() -> str:
    """`info` on a terminal, where a person waits for things to load, and `warning` in pipes and files."""
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
