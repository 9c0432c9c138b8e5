"""Policy specs: YAML tables of what is given and what is expected, run by `gatepost test`. See docs/specs.md."""

from gateway.specs.run import FILE_NAME, Report, find, run

__all__ = ["FILE_NAME", "Report", "find", "run"]
