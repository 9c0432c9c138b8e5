"""Recipients of one transaction that share a pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.pipeline.decision import Decision
from gateway.pipeline.record import Trace
from gateway.sdk.findings import Finding
from gateway.sdk.stage import Transaction
from gateway.smtp.judges import Judges


@dataclass(slots=True)
class Group:
    """The recipients of one transaction that one pipeline judges. `decision` is what it came to at DATA or later."""

    pipeline: str
    judges: Judges
    txn: Transaction
    decision: Decision | None = None

    @property
    def found(self) -> tuple[Finding, ...]:
        judges = self.judges
        return judges.transaction.found if judges.transaction is not None else judges.session.found

    @property
    def applied(self) -> tuple[Finding, ...]:
        """What was found by entries that are not in shadow."""
        transaction = self.judges.transaction
        return transaction.applied if transaction is not None else ()

    @property
    def traces(self) -> tuple[Trace, ...]:
        judges = self.judges
        return judges.transaction.traces if judges.transaction is not None else judges.session.traces
