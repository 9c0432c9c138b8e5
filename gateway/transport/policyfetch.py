"""Fetching a domain's MTA-STS policy: one GET over HTTPS.

*Fails by*: `Fetched` with a problem.

*RFCs*: 8461 section 3.3.
"""

from __future__ import annotations

from gateway.sdk.services import Dns
from gateway.transport.https import SECONDS, Https, HttpsFailed
from gateway.transport.mtasts import POLICY_OCTETS
from gateway.transport.policies import Fetched
from gateway.transport.rule import Failure


class PolicyFetcher:
    """Implements `gateway.transport.policies.Fetch`."""

    def __init__(self, dns: Dns, *, port: int = 443, ca_file: str = "", seconds: float = SECONDS) -> None:
        self._https = Https(dns, ca_file=ca_file, seconds=seconds)
        self._port = f":{port}" if port != 443 else ""

    async def close(self) -> None:
        await self._https.close()

    async def __call__(self, domain: str) -> Fetched:
        """The file ``/.well-known/mta-sts.txt`` of the policy's host."""
        url = f"https://mta-sts.{domain}{self._port}/.well-known/mta-sts.txt"
        headers = {"Accept": "text/plain", "Accept-Encoding": "identity"}
        answer = await self._https.ask("GET", url, headers, limit=POLICY_OCTETS)
        if isinstance(answer, HttpsFailed):
            return Fetched(
                problem=answer.problem, failure=Failure.STS_WEBPKI if answer.certificate else Failure.STS_FETCH
            )
        if answer.status != 200:
            return Fetched(problem=f"HTTP {answer.status}")
        if answer.kind != "text/plain":
            return Fetched(problem="it is not text/plain", failure=Failure.STS_INVALID)
        if len(answer.body) > POLICY_OCTETS:
            return Fetched(problem="it is too long", failure=Failure.STS_INVALID)
        return Fetched(answer.body)
