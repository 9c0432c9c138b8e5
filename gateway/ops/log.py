"""Structured log events: fixed names, fixed fields, one line each, on standard error.

Events are named ``noun.verb`` (``message.accepted``); docs/logging.md lists them. Fields in use: `session`, `id` (queue
id), `client`, `stage`, `plugin`, `verdict`, `fault`, `reason`, `seconds`.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import structlog

Format = Literal["auto", "json", "console"]

_encode = json.JSONEncoder(default=repr, ensure_ascii=False).encode


def _json(worker: str) -> Any:
    """Writes one line of JSON, in one step: a busy gateway writes thousands of them a second."""
    named = {"worker": worker} if worker else {}

    def write(_logger: Any, method: str, event: structlog.typing.EventDict) -> bytes:
        if event.get("exc_info"):
            event = structlog.processors.format_exc_info(_logger, method, event)
        line = {"event": event.pop("event"), **event, **named, "level": method, "timestamp": datetime.now(UTC)}
        try:
            return orjson.dumps(line, repr, orjson.OPT_UTC_Z)
        except orjson.JSONEncodeError:
            # Lone surrogates, and numbers of more than 64 bits.
            line["timestamp"] = line["timestamp"].isoformat().replace("+00:00", "Z")
            return _encode(line).encode("utf-8", "replace")

    return write


def setup(format: Format = "auto", level: str = "info", worker: str = "", *, for_good: bool = True) -> None:
    """Configure logging for this process. ``auto`` is console on a terminal and JSON everywhere else.

    Loggers remember it, which is quick, unless it is not `for_good`.
    """
    terminal = sys.stderr.isatty()
    console = format == "console" or (format == "auto" and terminal)
    factory: Any = (
        structlog.PrintLoggerFactory(sys.stderr) if console else structlog.BytesLoggerFactory(sys.stderr.buffer)
    )
    number = logging.getLevelNamesMapping()[level.upper()]

    def name_worker(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["worker"] = worker
        return event

    for_people: list[Any] = [
        *([name_worker] if worker else []),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer(colors=terminal),
    ]
    structlog.configure(
        processors=for_people if console else [_json(worker)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=factory,
        cache_logger_on_first_use=for_good,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)


def get() -> structlog.typing.FilteringBoundLogger:
    """A logger: ``log = get()`` at the top of a module."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
