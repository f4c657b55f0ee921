"""Structured logs: one JSON object per line, on standard error."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

LOGGER = logging.getLogger("vmla.serve")
UVICORN = "uvicorn.error"
"""The name of uvicorn's logger of everything that is no request."""


def log(event: str, **fields: Any) -> None:
    """Log an event with its fields; never pass prompts or keys."""
    LOGGER.info(event, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """Time, level, event and its fields; a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
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


def silence_uvicorn() -> None:
    """Silence uvicorn's log until `log_to_stderr` is called again."""
    logging.getLogger(UVICORN).disabled = True


def log_to_stderr(level: str) -> None:
    """Log to standard error, from `level` upwards."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in ("vmla.serve", UVICORN):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.disabled = [handler], False, False
        logger.setLevel(level.upper() if name == "vmla.serve" else logging.WARNING)
