"""What may go wrong with a configuration that is valid: `gatepost lint`."""

from gateway.app.lint.codes import CHECKS
from gateway.app.lint.report import RANK, Placed, Report, lint

__all__ = ["CHECKS", "RANK", "Placed", "Report", "lint"]
