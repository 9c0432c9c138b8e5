"""One environment for all tests of what authors do."""

from __future__ import annotations

import pytest

from tests.support.workshop import Workshop, make_workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A virtual environment with Gatepost installed in it."""
    return make_workshop(tmp_path_factory.mktemp("workshop") / "venv")
