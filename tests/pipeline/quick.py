"""Time that jumps, as `gatepost chaos` has it too."""

from __future__ import annotations

from gateway.services.quick import LoopClock, QuickLoop, run

__all__ = ["LoopClock", "QuickLoop", "run"]
