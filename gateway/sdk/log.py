"""Logging for plugins: structured events, named ``noun.verb`` like Gatepost's own. Never log a secret."""

from __future__ import annotations

import structlog


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """A logger: ``_log = get_logger()`` at the top of a module, ``_log.info("greylist.passed", client=...)``."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
