"""The composition root: where the rooms are put together, and where processes are begun and ended."""

from gateway.app.supervisor import run
from gateway.app.wiring import load_pipelines

__all__ = ["load_pipelines", "run"]
