"""A day of mail from the world, made up from a seed: who comes when, with which messages, for whom.

The same seed gives the same sessions, senders and recipients. The DKIM key is made at run time, so signatures differ.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from tests.support.dkimkeys import rsa
from tests.traffic import words
from tests.traffic.corpus import SIZE_LIMIT, Content, FastKey, Writer, fast
from tests.traffic.people import CLOSED, OURS, RELAXED, Client, Domain, Helo, House, People

ALLOWANCE: Final = 60
"""Messages that the recorded gateway takes of one sender in a day; nobody but the greedy one sends so many."""
_CURVE: Final = (2, 1, 1, 1, 1, 2, 4, 7, 11, 13, 13, 12, 10, 11, 12, 12, 10, 8, 6, 5, 4, 4, 3, 3)
"""Share of the day's mail by hour."""
_DAY: Final = 86_400.0


class Kind(StrEnum):
    """What sort of mail it is, and its share of the day's transactions in per mill."""

    PARTNER = "a company with SPF, DKIM and DMARC"
    SMALL = "a small sender who proves nothing"
    BULK = "a newsletter by a provider of bulk mail"
    GREEDY = "a client that sends more than its allowance"
    LIST = "a mailing list, whose footer breaks the author's signature"
    FORWARDED = "forwarded mail, for which SPF fails and DKIM holds"
    BOUNCE = "a bounce"
    STRAY_BOUNCE = "a bounce from a host that proves nothing"
    SPAM = "spam from a machine that was broken into"
    SNOWSHOE = "spam from hosts with names, SPF and DKIM, which lists know"
    HARVEST = "guesses at recipients"
    PHISH = "somebody else's name in From"
    VIRUS = "a virus or a program"
    DROPPED = "a client from a network that is dropped"
    BLOCKED = "a sender whom the postmaster blocks"
    GROUPS = "a message for two domains that are judged apart"
    INTERNATIONAL = "a sender whose address is not ASCII"
    BIG = "a big message"
    RELAY = "an attempt to send through us to others"
    QUITTER = "a client that gives up"


_SHARES: Final = {
    Kind.PARTNER: 210,
    Kind.SMALL: 90,
    Kind.BULK: 120,
    Kind.LIST: 50,
    Kind.FORWARDED: 25,
    Kind.BOUNCE: 25,
    Kind.STRAY_BOUNCE: 15,
    Kind.SPAM: 210,
    Kind.SNOWSHOE: 50,
    Kind.HARVEST: 70,
    Kind.PHISH: 25,
    Kind.VIRUS: 12,
    Kind.DROPPED: 12,
    Kind.BLOCKED: 15,
    Kind.GROUPS: 25,
    Kind.INTERNATIONAL: 10,
    Kind.BIG: 4,
    Kind.RELAY: 10,
    Kind.QUITTER: 22,
}
_PATIENCE: Final = {Kind.SMALL: 0.7, Kind.FORWARDED: 0.8, Kind.SNOWSHOE: 0.6, Kind.STRAY_BOUNCE: 0.5, Kind.SPAM: 0.15}
"""How many come again when they are put off, as a greylist hopes."""


class Ending(StrEnum):
    """How the client ends a transaction, if we let it come so far."""

    SENT = "the whole message"
    QUIT = "QUIT instead of DATA"
    LOST = "the connection is lost within the message"


@dataclass(frozen=True)
class Mailing:
    """One transaction as the client means it. `domain` is that of MAIL FROM, None for the null sender; `author` that of
    From."""

    kind: Kind
    sender: str
    domain: Domain | None
    author: Domain
    recipients: tuple[str, ...]
    content: Content
    ending: Ending = Ending.SENT

    def spf(self, client: Client) -> str:
        """What SPF says (RFC 7208); for the null sender of the name at EHLO."""
        if self.domain is None:
            return "pass" if client.sure and client.helo is Helo.OWN else "none"
        return self.domain.spf(client)

    def dmarc(self, client: Client) -> str:
        """pass, fail, or none without a policy (RFC 9989)."""
        if not self.author.dmarc:
            return "none"
        name = self.domain.name if self.domain else client.greeting
        aligned = name == self.author.name or name.endswith("." + self.author.name)
        proved = (self.spf(client) == "pass" and aligned) or self.author.name in self.content.passes
        return "pass" if proved else "fail"


@dataclass(frozen=True)
class Visit:
    """One session. `number` is its client's port, by which it is found again; `at` is seconds since the day began.

    `again` says that the same was tried before, and that who put it off then has no reason any more.
    """

    number: int
    at: float
    client: Client
    mailings: tuple[Mailing, ...]
    again: bool = False


@dataclass(frozen=True)
class Day:
    """`visits` in the order of their coming; those that come again are the last ones."""

    seed: int
    people: People
    visits: tuple[Visit, ...]
    staff: tuple[str, ...]
    relaxed: tuple[str, ...]
    key: FastKey

    @property
    def transactions(self) -> int:
        return sum(len(visit.mailings) for visit in self.visits)


def make_day(seed: int, transactions: int) -> Day:
    """A day of so many transactions, at most 60,000 (a client's port numbers its session)."""
    if not 50 <= transactions <= 60_000:
        raise ValueError("a day has 50 to 60000 transactions")
    return _Maker(seed, transactions).make()


class _Maker:
    def __init__(self, seed: int, transactions: int) -> None:
        self._seed = seed
        self._wanted = transactions
        self._dice = random.Random(seed)
        self._people = People(self._dice, transactions)
        self._key = fast(rsa(1024))
        self._writer = Writer(self._dice, self._key)
        self._staff = tuple(dict.fromkeys(words.name(self._dice) + f"@{OURS}" for _ in range(220)))
        self._relaxed = tuple(dict.fromkeys(words.name(self._dice) + f"@{RELAXED}" for _ in range(60)))
        self._used: set[tuple[str, str]] = set()
        self._hours = list(itertools.accumulate(_CURVE))
        self._ample = self._writer.write("anna@sender.test", "ben@example.org", octets=SIZE_LIMIT * 5 // 4)
        self._made = 0

    def make(self) -> Day:
        first: list[Visit] = []
        again: list[Visit] = []
        for visit in self._draw():
            first.append(visit)
            if visit.again:
                first[-1] = replace(visit, again=False)
                again.append(replace(visit, at=visit.at + 1200 + self._dice.random() * 600))
        in_order = sorted(first, key=lambda v: v.at) + sorted(again, key=lambda v: v.at)
        numbered = tuple(replace(visit, number=number) for number, visit in enumerate(in_order, 1))
        return Day(self._seed, self._people, numbered, (*self._staff, CLOSED), self._relaxed, self._key)

    def _draw(self) -> Iterator[Visit]:
        """Visits until there are enough transactions; `again` is set where the client will come again."""
        yield from self._greedy()
        kinds, shares = list(_SHARES), list(_SHARES.values())
        bulk = self._bulk(_SHARES[Kind.BULK] * self._wanted // 1000)
        while self._made < self._wanted:
            kind = self._dice.choices(kinds, shares)[0]
            if kind in (Kind.BULK, Kind.HARVEST):
                # Sessions of theirs have several transactions.
                if self._dice.random() < 0.8:
                    continue
            visit = next(bulk, None) if kind is Kind.BULK else self._visit(kind)
            if visit is None:
                continue
            mailings = visit.mailings[: self._wanted - self._made]
            self._made += len(mailings)
            patient = self._dice.random() < _PATIENCE.get(kind, 0) and self._made < self._wanted
            self._made += patient
            yield replace(visit, mailings=mailings, again=patient)

    def _greedy(self) -> Iterator[Visit]:
        house = self._people.greedy
        for _ in range((ALLOWANCE + 10) // 10):
            mailings = tuple(self._newsletter(Kind.GREEDY, house, house.domain) for _ in range(10))
            self._made += 10
            yield Visit(0, self._time(), house.clients[0], mailings)

    def _bulk(self, transactions: int) -> Iterator[Visit]:
        """Sessions of up to eight newsletters."""
        while transactions > 0:
            house = self._dice.choice(self._people.bulk)
            count = self._dice.randint(3, 8)
            transactions -= count
            customer = self._dice.choice(self._people.customers)
            mailings = tuple(self._newsletter(Kind.BULK, house, customer) for _ in range(count))
            yield Visit(0, self._time(), self._dice.choice(house.clients), mailings)

    def _newsletter(self, kind: Kind, house: House, customer: Domain) -> Mailing:
        (to,) = self._to(1)
        content = self._writer.write(f"news@{customer.name}", to, newsletter=f"news.{customer.name}")
        content = self._writer.sign(self._writer.sign(content, customer.name), house.domain.name)
        sender = f"offers@{house.domain.name}" if kind is Kind.GREEDY else self._own_path("bounces", house.domain)
        return Mailing(kind, sender, house.domain, customer, (to,), content)

    def _own_path(self, local: str, domain: Domain) -> str:
        """A return path for this message only."""
        return f"{local}+{self._dice.getrandbits(32):08x}@{domain.name}"

    def _time(self) -> float:
        """Some time of the day, as the curve has it."""
        hour = bisect.bisect(self._hours, self._dice.random() * self._hours[-1])
        return (hour + self._dice.random()) * 3600 % _DAY

    def _to(self, count: int) -> tuple[str, ...]:
        return tuple(self._dice.sample(self._staff, count))

    def _some(self) -> tuple[str, ...]:
        """Recipients of an ordinary message: one mostly, now and then one whom nobody knows, or who takes nothing."""
        to = self._to(self._dice.choice((1, 1, 1, 1, 2, 3)))
        if self._dice.random() < 0.04:
            to += (f"{words.name(self._dice)}.{words.label(self._dice)}@{OURS}",)
        return (*to, CLOSED) if self._dice.random() < 0.01 else to

    def _visit(self, kind: Kind) -> Visit:
        client, mailings = self._of(kind)
        return Visit(0, self._time(), client, mailings)

    def _of(self, kind: Kind) -> tuple[Client, tuple[Mailing, ...]]:
        dice, people = self._dice, self._people
        match kind:
            case Kind.SPAM | Kind.RELAY | Kind.VIRUS:
                client = dice.choice(people.bots)
                return client, (self._forged(kind, client),)
            case Kind.HARVEST:
                client = dice.choice(people.bots)
                return client, tuple(self._guess(client) for _ in range(dice.randint(2, 8)))
            case Kind.DROPPED:
                client = dice.choice(people.dropped)
                return client, (self._forged(kind, client),)
            case Kind.SMALL | Kind.STRAY_BOUNCE:
                house = dice.choice(people.small)
            case Kind.SNOWSHOE:
                house = dice.choice(people.snowshoe)
            case Kind.BLOCKED:
                house = dice.choice(people.blocked)
            case Kind.LIST:
                house = dice.choice(people.lists)
            case Kind.FORWARDED:
                house = dice.choice(people.forwarders)
            case Kind.PHISH:
                house = dice.choice(people.bulk)
            case _:
                house = dice.choice([*people.partners, *people.cautious])
        client = dice.choice(house.clients)
        return client, (self._honest(kind, house, client),)

    def _honest(self, kind: Kind, house: House, client: Client) -> Mailing:
        """A message from a house of its own, whatever it is up to."""
        dice, people, write, sign = self._dice, self._people, self._writer.write, self._writer.sign
        domain = house.domain
        sender, to = self._fresh(f"@{domain.name}", self._some(), client)
        ending = Ending.SENT
        author = domain
        match kind:
            case Kind.LIST:
                author = dice.choice([*people.partners, *people.cautious]).domain
                content = write(f"{words.name(dice)}@{author.name}", to[0], newsletter=f"talk.{domain.name}")
                content = self._writer.through_list(sign(content, author.name), domain.name, author.name)
                return Mailing(kind, self._own_path("talk-bounces", domain), domain, author, to, content)
            case Kind.FORWARDED:
                author = domain = dice.choice([*people.partners, *people.cautious]).domain
                sender, to = self._fresh(f"@{domain.name}", to, client)
            case Kind.PHISH:
                author = dice.choice([*people.partners, *people.cautious]).domain
                content = sign(write(f"service@{author.name}", to[0], hooked=dice.random() < 0.3), domain.name)
                return Mailing(kind, sender, domain, author, to, content)
            case Kind.BOUNCE | Kind.STRAY_BOUNCE:
                _, to = self._fresh("", self._to(1), client)
                content = write(f"mailer-daemon@{domain.name}", to[0])
                return Mailing(kind, "", None, domain, to, content)
            case Kind.SNOWSHOE:
                content = sign(write(sender, to[0], hooks=dice.choice((0, 0, 1, 2))), domain.name)
                return Mailing(kind, sender, domain, domain, to, content)
            case Kind.INTERNATIONAL:
                sender = f"jürgen.{words.label(dice)}@{domain.name}"
            case Kind.GROUPS:
                to = tuple(dice.sample((*to, *dice.sample(self._relaxed, 2)), len(to) + 2))
            case Kind.QUITTER:
                ending = dice.choice((Ending.QUIT, Ending.LOST))
            case Kind.BIG if dice.random() < 0.2:
                return Mailing(kind, sender, domain, domain, to, self._ample)
        octets = dice.randrange(200_000, SIZE_LIMIT // 2) if kind is Kind.BIG else 0
        hooked = kind is Kind.PARTNER and dice.random() < 0.01
        local = sender.partition("@")[0]
        content = write(f"{local if local.isascii() else 'office'}@{author.name}", to[0], octets=octets, hooked=hooked)
        if author.signs:
            content = sign(content, author.name)
        return Mailing(kind, sender, domain, author, to, content, ending)

    def _forged(self, kind: Kind, client: Client) -> Mailing:
        """What comes from a machine that was broken into: in the name of somebody, or of nobody."""
        dice = self._dice
        if dice.random() < 0.5:
            author = dice.choice([*self._people.partners, *self._people.cautious, *self._people.small]).domain
        else:
            author = Domain(f"{words.label(dice)}.nowhere.test")
        sender, to = self._fresh(f"@{author.name}", self._some(), client)
        if kind is Kind.RELAY:
            to = tuple(dice.sample((*to, "victim@elsewhere.test"), len(to) + 1))
        hooks = 0 if kind is Kind.VIRUS else dice.choice((0, 1, 1, 2))
        virus = kind is Kind.VIRUS and dice.random() < 0.6
        program = kind is Kind.VIRUS and not virus
        hooked = not hooks and dice.random() < 0.2
        content = self._writer.write(sender, to[0], hooks=hooks, hooked=hooked, virus=virus, program=program)
        return Mailing(kind, sender, author, author, to, content)

    def _guess(self, client: Client) -> Mailing:
        """A harvester's transaction: names that may exist, and seldom do."""
        dice = self._dice
        author = Domain(f"{words.label(dice)}.nowhere.test")
        guesses = tuple(f"{words.name(dice)}.{n}@{OURS}" for n in range(dice.randint(2, 6)))
        sender, hit = self._fresh(f"@{author.name}", self._to(1), client)
        to = (*guesses, *hit) if dice.random() < 0.2 else guesses
        return Mailing(Kind.HARVEST, sender, author, author, to, self._writer.write(sender, to[0]))

    def _fresh(self, at: str, to: tuple[str, ...], client: Client) -> tuple[str, tuple[str, ...]]:
        """A sender that has not written to any of these yet; for the null sender, recipients anew.

        So nobody but who comes again is a retry for the greylist, however fast the day is played.
        """
        for _ in range(1000):
            sender = words.name(self._dice) + at if at else f"<> {client.address}"
            if all((sender, recipient) not in self._used for recipient in to):
                self._used.update((sender, recipient) for recipient in to)
                return sender, to
            if not at:
                to = self._to(1)
        raise RuntimeError("the word list is too short for so long a day")
