"""Runs a class of `tests.support.milters` behind a socket, as its author would: ``run_milter.py CLASS SOCKET``."""

from __future__ import annotations

import sys
from pathlib import Path

import Milter

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support import milters

Milter.factory = getattr(milters, sys.argv[1])
Milter.runmilter("test", sys.argv[2], timeout=60)
