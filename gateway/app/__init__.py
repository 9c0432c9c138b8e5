"""The composition root: where the rooms are put together, and where processes are begun and ended."""

from gateway.app.guest import lend
from gateway.app.guest_worker import Lending
from gateway.app.inquiry import RuleError, load_inquiries
from gateway.app.supervisor import run
from gateway.app.wiring import catalog_of, load_pipelines, notices

__all__ = ["Lending", "RuleError", "catalog_of", "lend", "load_inquiries", "load_pipelines", "notices", "run"]
