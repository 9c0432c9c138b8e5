"""Structured log events: fixed names, fixed fields, one line each.

Events are named ``noun.verb`` (``message.accepted``); docs/logging.md lists them. Fields in use: `session`, `id` (queue
id), `client`, `stage`, `plugin`, `verdict`, `fault`, `reason`, `seconds`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog

Format = Literal["json", "console"]


def setup(format: Format = "json", level: str = "info", worker: str = "") -> None:
    """Configure logging for this process; all of it goes to standard error."""
    renderer: Any = (
        structlog.processors.JSONRenderer(sort_keys=False)
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    if worker:
        structlog.contextvars.bind_contextvars(worker=worker)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)


def get() -> structlog.typing.FilteringBoundLogger:
    """A logger: ``log = get()`` at the top of a module."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
