"""Gatepost with breakers that do not wait for half a minute: ``impatient.py SECONDS CONFIG``.

A breaker that opens stays open for SECONDS at first. All else is as with ``gatepost run -c CONFIG``.
"""

from __future__ import annotations

import sys

from gateway.cli.gateway import metrics_directory
from gateway.config import load


def main(seconds: str, config: str) -> int:
    with metrics_directory():
        # Only now, as the metrics library decides at import whether it counts for one process or for many.
        from gateway import app
        from gateway.pipeline import breaker

        breaker.FIRST_PAUSE = float(seconds)  # type: ignore[misc]  # it is Final to others
        return app.run(load(config))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
