"""SPF: may this client send for the MAIL FROM domain, and is it the host that it says it is in HELO?

pyspf evaluates the records. It is written for look-ups that block, so it runs in a greenlet, which leaves off at each
question and goes on with the answer: waiting costs no thread, and nameservers that are slow on purpose make nobody else
wait. It never asks a nameserver by itself: its one way to the DNS is overridden and leads to our resolver.

*Promises*: at most 10 mechanisms that look up, 10 names of one MX, `void_limit` void look-ups, `timeout` in all
(RFC 7208 section 4.6.4). Records and what is expanded are bounded in length, and so is the time that evaluating keeps
the event loop from others. The policy rejects nothing unless told to: a forwarded message fails SPF and may still pass
DMARC (RFC 7489 section 10.1).

*RFCs*: 7208, 7372 (X.7.23, X.7.24).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import spf
from greenlet import getcurrent, greenlet
from pydantic import Field

from gateway.sdk import (
    NULL_SENDER,
    PROCEED,
    Address,
    Answer,
    DnsStatus,
    Duration,
    Going,
    Mx,
    Plugin,
    PluginOptions,
    Policy,
    Services,
    Session,
    Spf,
    SpfResult,
    Stage,
    Tlsa,
    Transaction,
    Verdict,
    defer,
    finds,
    reject,
)

RECORD_OCTETS: Final = 16_384
TERM_CHARACTERS: Final = 400
"""Of a term's domain or macros. A name has 253; pyspf's patterns take a time that grows with the square of this."""
WORDS_CHARACTERS: Final = 1_000
"""Of an explanation, before its macros are expanded."""
_TEXT: Final = 400
_SHOWN: Final = 80
_SHORT: Final = 1_000
_NAME_CHARACTERS: Final = 253
_REDIRECT: Final = re.compile(r" redirect=", re.IGNORECASE)
_SELF_CONTAINED: Final = re.compile(rb"v=spf1(?: +[-+?~]?(?:ip4:[0-9./]+|ip6:[0-9a-f:./]+|all))* *", re.IGNORECASE)
"""A record whose terms look nothing up."""

_TOO_LATE: Final = Answer(DnsStatus.FAILED, problem="time is over")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class SpfOptions(PluginOptions):
    """Options of `spf`."""

    going: ClassVar[Mapping[str, Going]] = {"threads": Going(since="0.1", gone_in="0.2")}

    reject_fail: bool = Field(False, description="Refuse when MAIL FROM gives fail. Leave it off where DMARC is used.")
    reject_helo_fail: bool = Field(False, description="Refuse when HELO gives fail.")
    reject_permerror: bool = Field(False, description="Refuse when the MAIL FROM domain's records are broken.")
    defer_temperror: bool = Field(False, description="Refuse for now when the records cannot be had.")
    skip: tuple[Network, ...] = Field((), description="Clients that are not checked, as networks.")
    skip_trusted: bool = Field(True, description="Do not check clients in `relay_from`.")
    timeout: Duration = Field(20.0, ge=1, le=60, description="Time for one identity, all look-ups together.")
    void_limit: int = Field(2, ge=0, le=20, description="Look-ups without an answer that a record may cost.")


class SpfPolicy(Policy):
    """Refuse by SPF alone, as far as the options ask for it; by default nothing."""

    name = "spf"
    version = "2"
    Options = SpfOptions
    options: SpfOptions

    def on_rcpt(self, spf: Spf) -> Verdict:
        options = self.options
        if options.reject_fail and spf.result is SpfResult.FAIL:
            return _fail("client is not allowed to send for the sender's domain", spf.problem)
        if options.reject_helo_fail and spf.helo is SpfResult.FAIL:
            return _fail("client is not allowed to use this host name", spf.helo_problem)
        if options.reject_permerror and spf.result is SpfResult.PERMERROR:
            return reject("7.24", "the sender domain's SPF records are broken", reason=spf.problem)
        if options.defer_temperror and spf.result is SpfResult.TEMPERROR:
            return defer("7.24", "the sender domain cannot be checked now, try again later", reason=spf.problem)
        return PROCEED


def _fail(text: str, problem: str) -> Verdict:
    """Refuse, for now only where DNS trouble had a part in the result."""
    if problem:
        return defer("7.24", "the client cannot be checked now, try again later", reason=problem)
    return reject("7.23", text)


@dataclass(frozen=True, slots=True)
class _Outcome:
    result: SpfResult
    explanation: str = ""
    problem: str = ""
    lookups: int = 0
    void_lookups: int = 0


class _Questions:
    """What one evaluation asks of the resolver, until its time is over."""

    def __init__(self, services: Services, seconds: float) -> None:
        self._services = services
        self._deadline = services.clock.monotonic() + seconds

    async def ask(self, name: str, rdtype: str) -> Answer:
        """The answer; one that says FAILED when there is none in time."""
        left = self._deadline - self._services.clock.monotonic()
        if left <= 0:
            return _TOO_LATE
        # An answer out of the cache comes at once, and a hundred of them would keep the loop from everybody else.
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(left):
                return await self._services.dns.lookup(name, rdtype)
        except TimeoutError:
            return _TOO_LATE


class _Query(spf.query):  # type: ignore[misc] # pyspf has no types
    """pyspf's evaluation with our DNS. `dns` is its only way out; everything else of it builds on that."""

    def __init__(self, first: Answer, client: str, local: str, domain: str, helo: str, void_limit: int) -> None:
        # The local part goes in afterwards: pyspf takes the first @ for the end of it, and one may be quoted there.
        super().__init__(i=client, s=f"postmaster@{domain}", h=helo)
        self.l = local
        self.s = f"{local}@{domain}"
        self._first = ((domain.removesuffix(".").lower(), "TXT"), first)
        self._void_limit = void_limit
        self._void: list[str] = []
        self._explained_at: tuple[str, str] | None = None
        self._level = 0
        self._open: set[int] = set()
        self.trouble = ""

    def check1(self, record: str, domain: str, recursion: int) -> Any:
        """A record of its own, an included one (of a deeper level), or one that redirect leads to."""
        self._level = recursion
        if not recursion:
            # A redirect leaves its record's exp= behind (section 6.2).
            self._explained_at = None
        if recursion in self._open:
            self.check_lookups()
        if record and _REDIRECT.search(record):
            # pyspf counts every redirect=, also one that is not followed since something matches, or is all (6.1).
            self.lookups -= 1
        redirected = recursion in self._open
        self._open.add(recursion)
        try:
            return super().check1(record, domain, recursion)
        finally:
            if not redirected:
                self._open.discard(recursion)

    def expand(self, text: str, stripdot: bool = True) -> str:
        """A name that is too long loses as many labels as it takes (section 7.3); with pyspf it loses one."""
        if len(text) > (TERM_CHARACTERS if stripdot else WORDS_CHARACTERS):
            raise spf.PermError("text with macros is too long", text[:_SHOWN])
        name = str(super().expand(text, stripdot))
        while stripdot and len(name) > _NAME_CHARACTERS and "." in name:
            name = name.partition(".")[2]
        return name

    def expand_domain(self, arg: str) -> str:
        """As pyspf does it, unless the text is too long to be honest."""
        if len(arg) > TERM_CHARACTERS:
            raise spf.PermError("domain is too long", arg[:_SHOWN])
        return str(super().expand_domain(arg))

    def cidrmatch(self, addresses: Iterable[str], prefix: int) -> bool:
        """Whether the client and one of the addresses have that many bits in common.

        Makes a network of the client once, not of each address as pyspf does: an answer may hold thousands of them.
        """
        kind = ipaddress.IPv4Network if self.ipaddr.version == 4 else ipaddress.IPv6Network
        network = kind((int(self.ipaddr), prefix), strict=False)
        try:
            return any(ipaddress.ip_address(address) in network for address in addresses)
        except ValueError as error:
            raise spf.PermError(str(error)) from None

    def get_explanation(self, spec: str) -> None:
        """Not looked up yet: most mail passes, and pyspf would ask for it every time and for included records too."""
        if not self._level:
            self._explained_at = (spec, self.d)

    def explain(self) -> str:
        """The domain owner's words on a fail, empty when there are none or they cannot be had (section 6.2)."""
        if self._explained_at is None:
            return ""
        spec, self.d = self._explained_at
        try:
            return super().get_explanation(spec) or ""
        except Exception:  # noqa: BLE001 - whatever is wrong with the words, the result stands
            return ""

    def dns(self, name: str, qtype: str, cnames: Any = None, ignore_void: bool = False) -> list[Any]:
        """Records in pyspf's forms; CNAMEs are the resolver's business."""
        name = str(name).removesuffix(".").lower()
        if not name or any(not 0 < len(label) < 64 for label in name.split(".")):
            return []
        found = [_convert(record) for record in self._ask(name, qtype).records]
        if not found and not ignore_void:
            self._void.append(f"{qtype} {name[:_SHOWN]}")
            self.void_lookups += 1
            if self.void_lookups > self._void_limit:
                raise spf.PermError(f"Void lookup limit of {self._void_limit} exceeded: {', '.join(self._void)}")
        return found

    def _ask(self, name: str, rdtype: str) -> Answer:
        """Leaves the greenlet until the answer is there. Raises `spf.TempError` when there is none."""
        if (name, rdtype) == self._first[0]:
            return self._first[1]
        parent = getcurrent().parent
        assert parent is not None, "evaluated outside a greenlet"
        answer: Answer = parent.switch((name, rdtype))
        if answer is _TOO_LATE:
            raise spf.TempError(answer.problem)
        if answer.status is DnsStatus.FAILED:
            raise spf.TempError(f"DNS: {answer.problem or 'no answer'}")
        return answer

    def validated_ptrs(self) -> list[str]:
        """The client's names that lead back to it. DNS trouble here is no match, not temperror (section 5.5)."""
        try:
            names = self.dns_ptr(self.i)[: spf.MAX_PTR]
        except spf.TempError as error:
            self.trouble = f"no reverse names: {error}"
            return []
        return [name for name in names if self._leads_back(name)]

    def _leads_back(self, name: str) -> bool:
        try:
            # What the client wrote into its own reverse zone is not to spend what the sender's record may cost.
            return bool(self.cidrmatch(self.dns(name, self.A, ignore_void=True), self.cidrmax))
        except spf.TempError as error:
            self.trouble = f"reverse name {name[:_SHOWN]} not verified: {error}"
            return False


def _convert(record: str | bytes | Mx | Tlsa) -> Any:
    if isinstance(record, bytes):
        if len(record) > RECORD_OCTETS and spf.RE_SPF.match(record):
            raise spf.PermError(f"record is longer than {RECORD_OCTETS} octets")
        return (record,)
    return (record.preference, record.host) if isinstance(record, Mx) else record


async def _evaluate(query: _Query, questions: _Questions) -> _Outcome:
    """Ask what the evaluation asks, one question after the other, and give its outcome."""
    run = greenlet(_outcome)
    said = run.switch(query)
    try:
        while not run.dead:
            said = run.switch(await questions.ask(*said))
    finally:
        if not run.dead:
            # Whoever asked has gone.
            run.throw()
    outcome: _Outcome = said
    return outcome


def _outcome(query: _Query) -> _Outcome:
    """Runs in a greenlet, whose parent gets each question and gives its answer; without one where nothing is asked."""
    try:
        word, _, text = query.check()
    except Exception as error:  # noqa: BLE001 - a record of the sender's that trips pyspf must not count as our failure
        return _Outcome(SpfResult.PERMERROR, problem=f"record cannot be evaluated ({type(error).__name__})")
    result, used = SpfResult(word), (max(0, query.lookups), query.void_lookups)
    if result in (SpfResult.TEMPERROR, SpfResult.PERMERROR):
        return _Outcome(result, "", _clean(text), *used)
    problem = _clean(query.trouble)
    return _Outcome(result, _clean(query.explain()) if result is SpfResult.FAIL else "", problem, *used)


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:_TEXT])


def _checkable(domain: str) -> bool:
    """Whether the domain can have a record at all (RFC 7208 section 4.3): well-formed and of several labels."""
    labels = domain.removesuffix(".").split(".")
    return len(labels) > 1 and len(domain) < 254 and all(0 < len(label) < 64 for label in labels) and domain[0] != "["


def _finding(domain: str, mail: _Outcome, helo: str, own: _Outcome) -> Spf:
    return Spf(
        mail.result,
        domain,
        own.result,
        helo,
        mail.explanation,
        mail.problem,
        mail.lookups,
        mail.void_lookups,
        own.lookups,
        own.void_lookups,
        own.problem,
    )


class SpfPlugin(Plugin):
    """Evaluates SPF for MAIL FROM and for HELO."""

    name = "spf"
    Options = SpfOptions
    policy = SpfPolicy
    # More than the 20 seconds that RFC 7208 section 4.6.4 asks a time limit to allow.
    timeout = 25.0
    options: SpfOptions

    def patience(self) -> float:
        return self.options.timeout

    @finds(Stage.MAIL)
    async def check(self, transaction: Transaction) -> Spf:
        """Both identities; the null sender's MAIL FROM is postmaster at HELO (RFC 7208 section 2.4)."""
        session, sender = transaction.session, transaction.sender
        helo = session.helo.lower().removesuffix(".")
        domain = sender.ascii_domain if isinstance(sender, Address) else helo
        if self._skipped(session):
            return Spf(SpfResult.NONE, domain, SpfResult.NONE, helo, problem="client is not checked")
        if sender is NULL_SENDER:
            both = await self._identity(session, "postmaster", helo, helo)
            return _finding(domain, both, helo, both)
        # An address without a local part has that of postmaster (section 4.3).
        mail, own = await asyncio.gather(
            self._identity(session, sender.local or "postmaster", domain, helo),
            self._identity(session, "postmaster", helo, helo),
        )
        return _finding(domain, mail, helo, own)

    def _skipped(self, session: Session) -> bool:
        if session.trusted and self.options.skip_trusted:
            return True
        return any(session.client.version == net.version and session.client in net for net in self.options.skip)

    async def _identity(self, session: Session, local: str, domain: str, helo: str) -> _Outcome:
        if not _checkable(domain):
            return _Outcome(SpfResult.NONE)
        first = await self.services.dns.lookup(domain, "TXT")
        if first.status is DnsStatus.FAILED:
            return _Outcome(SpfResult.TEMPERROR, problem=f"DNS: {first.problem}")
        records = [record for record in first.records if isinstance(record, bytes) and spf.RE_SPF.match(record)]
        if not records:
            return _Outcome(SpfResult.NONE)
        query = _Query(first, str(session.client), local, domain, helo, self.options.void_limit)
        query.t = str(int(self.services.clock.now()))
        query.r = self.services.hostname
        if len(records) == 1 and len(records[0]) <= _SHORT and _SELF_CONTAINED.fullmatch(records[0]):
            # Nothing to ask for, and a greenlet costs a third as much as evaluating this.
            return _outcome(query)
        return await _evaluate(query, _Questions(self.services, self.options.timeout))
