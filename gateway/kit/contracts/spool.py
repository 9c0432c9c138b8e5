"""What every `Spool` must do.

    class TestOurSpool(SpoolContract):
        @pytest.fixture
        def place(self, tmp_path):
            return OurPlace(tmp_path)

Durability is not among it: that needs a process that is killed at every step (`gateway.spool.spool.Step`).
"""

from __future__ import annotations

from gateway.kit.contracts.spool_desk import SpoolDesk
from gateway.kit.contracts.spool_mail import SpoolMail
from gateway.kit.contracts.spool_place import SpoolPlace

__all__ = ["SpoolContract", "SpoolPlace"]


class SpoolContract(SpoolMail, SpoolDesk):
    """Derive from it a class whose fixture `place` is a `SpoolPlace`. Each test has a place of its own."""
