"""A short day of mixed traffic through a real gateway, judged again by three other configurations: see `make day`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import summary
from tests.traffic.check import check
from tests.traffic.day import make_day


@pytest.mark.slow
@pytest.mark.first
def test_what_is_said_of_a_recorded_day_is_true(directory: Path) -> None:
    found = check(make_day(seed=7, transactions=400), directory, ["stricter-dmarc"])
    summary.add("\n".join(["A recorded day, judged again:", *found.lines]))
    assert found.wrong == []
