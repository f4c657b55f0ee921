"""Structured logs: one JSON object a line, on the error stream."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

LOGGER = logging.getLogger("vmla.serve")


def log(event: str, **fields: Any) -> None:
    """Log an event with its fields; never pass prompts or keys."""
    LOGGER.info(event, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """Time, level, event and its fields; a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr(level: str) -> None:
    """Begin to log, from `level` on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in ("vmla.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper() if name == "vmla.serve" else logging.WARNING)
