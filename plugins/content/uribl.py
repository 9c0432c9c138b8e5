"""The plugin `uribl`: asks lists of domains that spam leads to for the hosts that a message names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter
from pydantic import ConfigDict, Field, FiniteFloat, field_validator

from gateway.sdk import (
    PROCEED,
    AddHeader,
    Duration,
    LocalParts,
    Message,
    Mime,
    Plugin,
    PluginOptions,
    Policy,
    Session,
    Stage,
    Transaction,
    UriHit,
    UriHits,
    Verdict,
    annotate,
    defer,
    finds,
    quarantine,
    reject,
)
from gateway.sdk.lint import Check, Remark, Setting, Severity, refuses_public_resolvers
from plugins.content.hosts import host_name
from plugins.content.reading import read_parts
from plugins.content.urilists import ZONE, UriList, UriListOptions, read_key
from plugins.content.uris import Hosts, choose, find_hosts

HITS = Counter("gatepost_uribl_hits", "Messages with a host that a list names.", ["list"])
FAILURES = Counter("gatepost_uribl_failures", "Questions to a URI list without a usable answer.", ["list"])

_AT_ONCE: Final = 64 << 10
"""Characters of text that are looked through without a thread."""
_SHOWN: Final = 5


REFUSED: Final = Check("uribl/public-resolver", Severity.WARNING, "a list refuses the public resolver that asks it")


class UriblOptions(PluginOptions):
    """Options of `uribl`."""

    model_config = ConfigDict(hide_input_in_errors=True)

    lists: dict[str, UriListOptions] = Field(
        min_length=1, max_length=20, description="Lists to ask: zone -> weight, or more about it."
    )
    reject_at: FiniteFloat | None = Field(None, description="Refuse for good from this score on; null never does.")
    defer_at: FiniteFloat | None = Field(None, description="Refuse for now from this score on; null never does.")
    quarantine_at: FiniteFloat | None = Field(1.0, description="Set aside from this score on; null never does.")
    tag_at: FiniteFloat | None = Field(None, description="Add the field `tag` from this score on; null never does.")
    tag: str = Field("X-Uri-Score", pattern=r"^[A-Za-z0-9-]{1,70}$", description="Field that `tag_at` adds.")
    names: int = Field(30, ge=1, le=500, description="How many hosts of a message are asked for.")
    bare: bool = Field(True, description="Also ask for words that look like a domain name, and are no link.")
    allow: frozenset[str] = Field(frozenset(), description="Domains that nobody is asked for, with all below them.")
    wait: Duration = Field(3.0, gt=0, description="Time for one question; after it the list counts as failed.")
    exempt: LocalParts = Field(
        frozenset({"abuse", "postmaster"}), description="Local parts that may be written to about listed domains."
    )

    @field_validator("lists")
    @classmethod
    def _zones(cls, value: dict[str, UriListOptions]) -> dict[str, UriListOptions]:
        if not all(ZONE.match(zone) for zone in value):
            raise ValueError("a list is a domain name of at most 120 characters")
        return value

    @field_validator("allow")
    @classmethod
    def _names(cls, value: frozenset[str]) -> frozenset[str]:
        read = {name: host_name(name) for name in value}
        for name, host in read.items():
            if not host:
                raise ValueError(f"{name!r} is no domain name")
        return frozenset(read.values())


class UriblPolicy(Policy):
    """Set aside, tag or refuse messages by the score of the hosts that they name."""

    name = "uribl"
    Options = UriblOptions
    options: UriblOptions

    def on_message(self, transaction: Transaction, found: UriHits) -> Verdict:
        verdict = self._verdict(found)
        others = [r for r in transaction.recipients if not r.address.has_local(self.options.exempt)]
        if verdict is PROCEED or len(others) == len(transaction.recipients):
            return verdict
        return verdict.only(others) if others else PROCEED

    def _verdict(self, found: UriHits) -> Verdict:
        options, score = self.options, found.score
        named = ", ".join(f"{hit.host} ({hit.list})" for hit in found.hits[:_SHOWN])
        reason = f"score {score:g} from {named or 'no host'}"
        if options.reject_at is not None and score >= options.reject_at:
            return reject("7.1", "message names a listed domain", reason=reason)
        if options.defer_at is not None and score >= options.defer_at:
            return defer("7.1", "message names a listed domain, try again later", code=450, reason=reason)
        if options.quarantine_at is not None and score >= options.quarantine_at:
            return quarantine(reason)
        if options.tag_at is not None and score >= options.tag_at:
            return annotate(AddHeader(options.tag, f"{score:g}"))
        return PROCEED


class UriblPlugin(Plugin):
    """Asks URI lists for the hosts of a message."""

    name = "uribl"
    Options = UriblOptions
    policy = UriblPolicy
    checks = (REFUSED,)
    timeout = 20.0
    options: UriblOptions

    async def start(self) -> None:
        keys = [
            await asyncio.to_thread(read_key, options.key_file) if options.key_file else ""
            for options in self.options.lists.values()
        ]
        named = zip(self.options.lists.items(), keys, strict=True)
        self._lists = [UriList(zone, options, key) for (zone, options), key in named]

    def lint(self, setting: Setting) -> Iterable[Remark]:
        asked = [zone for zone, options in self.options.lists.items() if not options.key_file]
        refusing = [zone for zone in asked if refuses_public_resolvers(zone)]
        for resolver in setting.public_resolvers[:1] if refusing else ():
            yield Remark(
                REFUSED,
                ("lists",),
                f"no answer for {resolver}, which many share, from {', '.join(refusing)}",
                "a message links to a listed host, the list says that it does not serve us, and the message comes in",
                "write dns: {nameservers: [...]} with a resolver of your own, or get a key of the list",
            )

    def patience(self) -> float:
        return self.options.wait

    @finds(Stage.MESSAGE)
    async def ask(self, session: Session, message: Message, mime: Mime | None) -> UriHits:
        """The hosts that lists name. Messages of trusted clients are ours and not looked at."""
        if session.trusted:
            return UriHits(0.0)
        texts = mime.texts if mime else (await read_parts(message.content)).texts
        if sum(len(text.text) for text in texts) > _AT_ONCE:
            hosts = await asyncio.to_thread(find_hosts, texts, bare=self.options.bare)
        else:
            hosts = find_hosts(texts, bare=self.options.bare)
        asked, left_out = self._choose(hosts)
        questions = [(source, *question) for source in self._lists for question in _questions(source, asked)]
        answers = await asyncio.gather(*(self._ask(source, prefix) for source, prefix, _ in questions))
        failed: dict[str, None] = {}
        hits = []
        for (source, _, host), codes in zip(questions, answers, strict=True):
            if codes is None:
                failed[source.shown] = None
                continue
            counted, weight = source.weigh(codes)
            if counted:
                hits.append(UriHit(host, source.shown, counted, weight))
        return self._found(hits, tuple(failed), len(asked), left_out)

    def _found(self, hits: list[UriHit], failed: tuple[str, ...], asked: int, left_out: int) -> UriHits:
        """A list counts once, by the heaviest of the hosts that it names."""
        heaviest: dict[str, float] = {}
        for hit in hits:
            heaviest[hit.list] = max(heaviest.get(hit.list, 0.0), hit.weight, key=abs)
        for name in heaviest:
            HITS.labels(name).inc()
        return UriHits(round(sum(heaviest.values()), 6), tuple(hits), failed, asked, left_out)

    def _choose(self, hosts: Hosts) -> tuple[tuple[str, ...], int]:
        """The hosts to ask for, those of links first, and how many are left out."""
        most = self.options.names
        links = [host for host in hosts.links if not self._allowed(host)]
        words = [host for host in hosts.words if not self._allowed(host)]
        chosen = choose(links, most)
        chosen += choose(words, most - len(chosen))
        return chosen, len(links) + len(words) - len(chosen)

    def _allowed(self, host: str) -> bool:
        labels = host.split(".")
        return any(".".join(labels[n:]) in self.options.allow for n in range(len(labels)))

    async def _ask(self, source: UriList, prefix: str) -> tuple[str, ...] | None:
        """The list's codes, empty when it does not name the host; None when it gave no usable answer."""
        codes: tuple[str, ...] | None = None
        name = f"{prefix}.{source.zone}"
        # A name that is too long for the DNS cannot be on the list.
        if len(name) > 253:
            return ()
        try:
            async with asyncio.timeout(self.options.wait):
                codes = source.usable(await self.services.dns.lookup(name, "A"))
        except TimeoutError:
            pass
        if codes is None:
            FAILURES.labels(source.shown).inc()
        return codes


def _questions(source: UriList, hosts: Iterable[str]) -> Iterable[tuple[str, str]]:
    """What a list is asked for, each once, and the first host that it is asked for because of."""
    found: dict[str, str] = {}
    for host in hosts:
        if prefix := source.question(host):
            found.setdefault(prefix, host)
    return found.items()
