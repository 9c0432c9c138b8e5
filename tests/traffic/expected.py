"""What must come of each transaction of a day, worked out from what is true of its clients and messages, and from what
the cards of plugins and policies say. None of the gateway's code that judges is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.pipeline.rollout import Rollout
from gateway.sdk.testing import make_session
from tests.traffic.callers import FIRST_EXTRA
from tests.traffic.day import Day, Ending, Kind, Mailing, Visit
from tests.traffic.people import BULK, CLOSED, DROPPED, OURS, RELAXED, Client, Helo, Reverse
from tests.traffic.settings import WEIGHTS, Setting

Place = tuple[int, int]
"""A visit's number, and the place of its mailing; the first place of a session that is refused is its own."""


class Who(StrEnum):
    """Whose verdict it is; in a list's order at RCPT."""

    DROP_LIST = "access"
    GENERIC = "rules"
    RELAY = "relay control"
    DNSBL = "dnsbl"
    HELO = "helo"
    RDNS = "rdns"
    SENDER_LIST = "access#2"
    CLOSED = "access#3"
    RECIPIENT = "recipient"
    GREYLIST = "greylist"
    MESSAGE = "something at message"
    NOBODY = ""


_FOR_NOW: Final = frozenset({Who.RDNS, Who.GREYLIST})


@dataclass(frozen=True)
class Expected:
    """What must come of a transaction.

    `word` is as records have it, but that who gives up since no recipient is taken is refused. `refused` are
    recipients, and whose verdict that is. `session` says that the session itself is refused. `shadow` is whether the
    entry in shadow would refuse the message, None where it has no turn.
    """

    word: str
    who: Who = Who.NOBODY
    refused: tuple[tuple[str, Who], ...] = ()
    session: bool = False
    shadow: bool | None = None


def expect(day: Day, setting: Setting) -> dict[Place, Expected]:
    """All transactions of the day but those of the greedy client, of whom only some have room."""
    known = frozenset(day.staff), frozenset(day.relaxed)
    found: dict[Place, Expected] = {}
    for visit in day.visits:
        if visit.mailings[0].kind is not Kind.GREEDY:
            found.update(_Judge(setting, known, day.people.lists[0].domain.name, visit).session())
    return found


def score(client: Client) -> int:
    """The sum of the weights of the lists that list it."""
    return sum(WEIGHTS[zone] for zone in client.listed)


def covered(client: Client, share: int) -> bool:
    """Whether an entry that is enforced for a share of the traffic is for this client."""
    return Rollout(share / 100).covers(Who.GENERIC, make_session(str(client.address)), None)


class _Judge:
    def __init__(
        self, setting: Setting, known: tuple[frozenset[str], frozenset[str]], sealer: str, visit: Visit
    ) -> None:
        self._setting = setting
        self._staff, self._relaxed = known
        self._sealer = sealer
        self._visit = visit
        self._client = visit.client

    def session(self) -> Iterator[tuple[Place, Expected]]:
        number, setting, client = self._visit.number, self._setting, self._client
        if setting.drop_list and client.address in DROPPED:
            yield (number, 0), Expected("rejected", Who.DROP_LIST, session=True)
            return
        if client.reverse is Reverse.GENERIC and covered(client, setting.generic_share):
            yield (number, 0), Expected("rejected", Who.GENERIC, session=True)
            return
        left: list[tuple[int, Mailing, tuple[str, ...]]] = []
        for place, mailing in enumerate(self._visit.mailings):
            found, others = self._transaction(mailing, mailing.recipients)
            if others:
                left.append((FIRST_EXTRA + place, mailing, others))
            yield (number, place), found
            if mailing.ending is Ending.LOST and found.word == "aborted":
                return
        for place, mailing, others in left:
            yield (number, place), self._transaction(mailing, others)[0]

    def _transaction(self, mailing: Mailing, recipients: tuple[str, ...]) -> tuple[Expected, tuple[str, ...]]:
        """What comes of it, and recipients who have to come in a transaction of their own."""
        refused: list[tuple[str, Who]] = []
        taken: list[str] = []
        others: list[str] = []
        for recipient in recipients:
            domain = recipient.rpartition("@")[2]
            if domain in (OURS, RELAXED) and any(not already.endswith("@" + domain) for already in taken):
                others.append(recipient)
            elif who := self._recipient(mailing, recipient, domain):
                refused.append((recipient, who))
            else:
                taken.append(recipient)
        if not taken:
            who = refused[-1][1]
            deferred = who in _FOR_NOW or (who is Who.HELO and self._client.helo is Helo.MISSING)
            return Expected("deferred" if deferred else "rejected", who, tuple(refused)), tuple(others)
        word, shadow = self._end(mailing, taken[0].endswith("@" + RELAXED))
        who = Who.MESSAGE if word in ("rejected", "deferred") else Who.NOBODY
        return Expected(word, who, tuple(refused), shadow=shadow), tuple(others)

    def _recipient(self, mailing: Mailing, recipient: str, domain: str) -> Who:
        """Who refuses the recipient."""
        client, setting = self._client, self._setting
        if domain not in (OURS, RELAXED):
            return Who.RELAY
        if domain == RELAXED:
            return Who.DNSBL if score(client) >= 5 else Who.NOBODY if recipient in self._relaxed else Who.RECIPIENT
        refuses = {
            Who.DNSBL: score(client) >= setting.reject_at,
            Who.HELO: client.helo is not Helo.OWN,
            Who.RDNS: client.reverse is Reverse.NONE,
            Who.SENDER_LIST: setting.sender_list and mailing.sender.endswith("." + BULK),
            Who.CLOSED: recipient == CLOSED,
            Who.RECIPIENT: recipient not in self._staff,
            Who.GREYLIST: bool(mailing.sender) and self._waits(mailing),
        }
        return next((who for who, does in refuses.items() if does), Who.NOBODY)

    def _waits(self, mailing: Mailing) -> bool:
        """Whether the greylist puts it off: who is suspicious and comes for the first time."""
        client = self._client
        suspicious = (
            score(client) >= 1
            or mailing.spf(client) != "pass"
            or client.reverse in (Reverse.NONE, Reverse.FORGED)
            or client.helo is not Helo.OWN
        )
        return suspicious and score(client) > -1 and not self._visit.again

    def _end(self, mailing: Mailing, relaxed: bool) -> tuple[str, bool | None]:
        """How the message ends, and what the entry in shadow says of it."""
        if mailing.ending is not Ending.SENT:
            return "aborted", None
        if mailing.content.too_big:
            return "rejected", None
        if relaxed:
            return self._dmarc(mailing, ("reject", "quarantine"), "") or "accepted", None
        if not mailing.sender and self._waits(mailing):
            return "deferred", None
        unproved = mailing.spf(self._client) != "pass" and not mailing.content.passes
        word = self._dmarc(mailing, self._setting.dmarc, self._sealer) or self._content(mailing, unproved)
        return word, unproved

    def _dmarc(self, mailing: Mailing, handling: tuple[str, str], sealer: str) -> str:
        vouched = sealer and mailing.content.vouched == sealer
        if mailing.dmarc(self._client) != "fail" or mailing.author.dmarc == "none" or vouched:
            return ""
        done = handling[0] if mailing.author.dmarc == "reject" else handling[1]
        return {"reject": "rejected", "quarantine": "quarantined", "none": ""}[done]

    def _content(self, mailing: Mailing, unproved: bool) -> str:
        content, setting = mailing.content, self._setting
        if content.program:
            return "rejected"
        if (setting.unproved and unproved and mailing.dmarc(self._client) == "none") or content.hooked:
            return "quarantined"
        sum_ = 3 * content.hooks
        if content.virus or (setting.score_reject_at is not None and sum_ >= setting.score_reject_at):
            return "rejected"
        return "quarantined" if sum_ >= 3 else "accepted"
