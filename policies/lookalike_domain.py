"""Mark or stop mail from domains that are made to look like ours, or like those of partners.

Such a domain belongs to who uses it, so SPF, DKIM and DMARC pass; what gives it away is how it looks. Four kinds are
told apart: letters that look like others (``examp1e``, or one with a Cyrillic letter), one wrong key (``exmaple``), the
whole name within another one (``example.org.login.example``, ``example-billing.example``), and another ending.

*RFCs*: 5890 (A-labels and U-labels).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Final

from pydantic import AfterValidator, Field, PlainSerializer

from gateway.sdk import (
    PROCEED,
    DomainNames,
    Message,
    Policy,
    PolicyOptions,
    Response,
    Session,
    Transaction,
    Verdict,
    domain_of,
    find_domain,
    read_authors,
    respond,
    show_domain,
)
from gateway.sdk.actions import check_tag, set_header, tag_subject
from gateway.sdk.lookalikes import edit_distance, skeleton
from gateway.sdk.mailboxes import read_mailboxes

_HEADER: Final = "X-Lookalike-Domain"
_REGISTRY: Final = re.compile(r"\.[a-z]{2,3}\.[a-z]{2}\Z")
"""Where a country's registry sorts by kinds: ``co.uk``, ``com.au``, ``gv.at``."""
_DOMAINS: Final = 20
"""Domains of one message that are compared."""


class Likeness(StrEnum):
    """What makes a domain look like another one."""

    LETTERS = "letters"
    TYPO = "typo"
    WITHIN = "within"
    ENDING = "ending"


class Place(StrEnum):
    """Where a domain stands."""

    FROM = "from"
    REPLY_TO = "reply-to"
    SENDER = "sender"
    """MAIL FROM."""


_AS_LIST: Final = PlainSerializer(sorted, return_type=list[str], when_used="json")


class LookalikeDomainOptions(PolicyOptions):
    """Options of `lookalike-domain`."""

    protect: DomainNames = Field(
        min_length=1,
        max_length=500,
        description="Domains, ours and those of partners, that others may try to look like.",
    )
    known: DomainNames = Field(
        frozenset(), max_length=10_000, description="Domains, with all below, that look like them and are good."
    )
    like: Annotated[frozenset[Likeness], _AS_LIST] = Field(
        frozenset({Likeness.LETTERS, Likeness.TYPO, Likeness.WITHIN}),
        min_length=1,
        description="Which likeness counts: `letters`, `typo`, `within`, `ending`.",
    )
    places: Annotated[frozenset[Place], _AS_LIST] = Field(
        frozenset(Place), min_length=1, description="Where domains are looked at: `from`, `reply-to`, `sender`."
    )
    shortest: int = Field(
        6, ge=3, le=63, description="Letters that a name must have for `typo`, and for being a part of another name."
    )
    action: Response = Field(
        Response.TAG, description="What is done: `record`, `tag`, `quarantine` or `reject` (`550 5.7.1`)."
    )
    subject: Annotated[str, AfterValidator(lambda tag: tag and check_tag(tag))] = Field(
        "", description="Tag before the subject of what is tagged or set aside; empty for none."
    )


class LookalikeDomain(Policy):
    """Stops domains that look like ours; judged at message. Trusted clients pass."""

    name = "lookalike-domain"
    version = "2"
    Options = LookalikeDomainOptions
    options: LookalikeDomainOptions

    def __init__(self, options: LookalikeDomainOptions) -> None:
        super().__init__(options)
        self._protected = [_Protected(name, options.shortest) for name in sorted(options.protect)]

    def on_message(self, session: Session, transaction: Transaction, message: Message) -> Verdict:
        if session.trusted:
            return PROCEED
        for place, domain in list(dict.fromkeys(self._domains(transaction, message)))[:_DOMAINS]:
            for protected in self._protected:
                if likeness := protected.likeness(domain, self.options.like):
                    edits = set_header(_HEADER, f"{domain} looks like {protected.name}")
                    if self.options.subject:
                        edits += tag_subject(message, self.options.subject)
                    reason = f"{place} {domain} looks like {protected.name} ({likeness})"
                    return respond(self.options.action, reason, *edits, text="the sender's domain is not accepted")
        return PROCEED

    def _domains(self, transaction: Transaction, message: Message) -> Iterator[tuple[Place, str]]:
        """The domains that are looked at, without those that are protected or known themselves."""
        found = [(Place.FROM, author.domain) for author in read_authors(message)]
        found += [(Place.REPLY_TO, mailbox.domain) for mailbox in read_mailboxes(message.all("Reply-To"))]
        found.append((Place.SENDER, domain_of(transaction.sender)))
        for place, domain in found:
            if place in self.options.places and domain and not domain.startswith("["):
                if not find_domain(domain, self.options.protect) and not find_domain(domain, self.options.known):
                    yield place, domain


class _Protected:
    """One protected domain, prepared for comparing."""

    def __init__(self, name: str, shortest: int) -> None:
        self.name = name
        self._labels = name.count(".") + 1
        self._skeleton = _skeleton(name)
        self._brand, _, self._ending = self._skeleton.partition(".")
        self._pieces = f"-{name.replace('.', '-')}-"
        self._long = len(show_domain(name).partition(".")[0]) >= shortest

    def likeness(self, domain: str, wanted: frozenset[Likeness]) -> Likeness | None:
        """What makes `domain` look like this one; None where it does not, or where that does not count."""
        return next((kind for kind in Likeness if kind in wanted and self._is(kind, domain)), None)

    def _is(self, kind: Likeness, domain: str) -> bool:
        # What stands below a domain makes it look no different.
        tail = _tail(domain, self._labels)
        if kind is Likeness.LETTERS:
            return tail == self._skeleton
        if kind is Likeness.TYPO:
            return self._long and edit_distance(tail, self._skeleton, 1) == 1 and tail.partition(".")[2] == self._ending
        if kind is Likeness.ENDING:
            # It may have more labels than ours, or fewer.
            tails = [tail, _tail(domain, 3 if _REGISTRY.search(domain) else 2)]
            names = (one.partition(".") for one in tails)
            return any(brand == self._brand and ending != self._ending for brand, _, ending in names)
        if self._pieces in f"-{domain.replace('.', '-')}-":
            return True
        parts = (label.split("-") for label in _skeleton(domain).split(".") if "-" in label)
        return self._long and any(self._brand in some for some in parts)


def _tail(domain: str, labels: int) -> str:
    return _skeleton(".".join(domain.split(".")[-labels:]))


@lru_cache(maxsize=1024)
def _skeleton(domain: str) -> str:
    return skeleton(show_domain(domain))
