"""The plugin that looks things up in access lists, its options and its policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Final, Literal, TypeVar

from prometheus_client import Counter
from pydantic import Field, field_validator, model_validator

from gateway.sdk import (
    PROCEED,
    Access,
    AccessAction,
    Action,
    AuthResult,
    OptionsModel,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    ReverseName,
    Services,
    Session,
    Stage,
    Transaction,
    Verdict,
    WatchedFile,
    accept,
    defer,
    discard,
    disconnect,
    finds,
    quarantine,
    reject,
)
from gateway.sdk.lint import Remark, Setting, Way
from plugins.access import lint
from plugins.access.lines import Rule, logical_lines, numbered, parse_result, parse_rules, split_regexp, split_word
from plugins.access.tables import (
    KeyTable,
    NetworkTable,
    PatternTable,
    Subject,
    Table,
    address_subject,
    client_subject,
    glob_pattern,
    name_subject,
    parse_address,
    parse_client,
    parse_name,
    parse_network,
)

MATCHES = Counter("gatepost_access_matches", "Lines of access lists that matched first.", ["match", "action"])

FILE_OCTETS: Final = 64 << 20
_T = TypeVar("_T")
_HANG_UP: Final = frozenset({421, 521})


class Match(StrEnum):
    """What a list is about."""

    CLIENT = "client"
    NAME = "name"
    HELO = "helo"
    SENDER = "sender"
    RECIPIENT = "recipient"


class Kind(StrEnum):
    """How a list's patterns are written."""

    EXACT = "exact"
    CIDR = "cidr"
    REGEXP = "regexp"
    GLOB = "glob"


_KNOWN_AT: Final = {
    Match.CLIENT: Stage.CONNECT,
    Match.NAME: Stage.CONNECT,
    Match.HELO: Stage.HELO,
    Match.SENDER: Stage.MAIL,
    Match.RECIPIENT: Stage.RCPT,
}


class ListOptions(OptionsModel):
    """One list."""

    match: Match = Field(description="What is looked up: `client`, `name`, `helo`, `sender` or `recipient`.")
    kind: Kind = Field(
        Kind.EXACT, description="How patterns are written: `exact`, `cidr` (of a client), `regexp` or `glob`."
    )
    file: str | None = Field(None, min_length=1, description="File with one pattern and its action a line.")
    entries: tuple[str, ...] = Field((), max_length=10_000, description="The same lines here, instead of a file.")
    action: str = Field("", max_length=300, description="Action of lines that name none.")

    @field_validator("action")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value:
            parse_result(value)
        return value

    @model_validator(mode="after")
    def _agree(self) -> ListOptions:
        if (self.file is None) == (not self.entries):
            raise ValueError("a list has either a file or entries")
        if self.kind is Kind.CIDR and self.match is not Match.CLIENT:
            raise ValueError(f"cidr lists are of client addresses, and this matches {self.match}")
        if self.entries:
            self.from_entries()
        return self

    def from_entries(self) -> Table:
        """The table of the entries. Raises ValueError, which names the entry."""
        return self._table(numbered(self.entries), "entry")

    def from_file(self, data: bytes) -> Table:
        """The table of a file's content. Raises ValueError, which names the line."""
        return self._table(logical_lines(data), "line")

    def rules(self, lines: Iterator[tuple[int, str]], what: str = "line") -> Iterator[Rule]:
        """The rules of these lines, one by one. Raises ValueError, which names the line."""
        split = split_regexp if self.kind is Kind.REGEXP else split_word
        default = parse_result(self.action) if self.action else None
        return parse_rules(lines, split, default, what)

    def _table(self, lines: Iterator[tuple[int, str]], what: str) -> Table:
        rules = self.rules(lines, what)
        match self.kind:
            case Kind.CIDR:
                return NetworkTable(_read(rules, parse_network, what))
            case Kind.EXACT if self.match is Match.CLIENT:
                return NetworkTable(_read(rules, parse_client, what))
            case Kind.EXACT:
                named = self.match in (Match.NAME, Match.HELO)
                return KeyTable(_read(rules, parse_name if named else parse_address, what))
            case Kind.REGEXP:
                return PatternTable(((rule.pattern, rule) for rule in rules), what)
            case Kind.GLOB:
                return PatternTable(((glob_pattern(rule.pattern), rule) for rule in rules), what)


def _read(rules: Iterator[Rule], parse: Callable[[str], _T], what: str) -> Iterator[tuple[_T, Rule]]:
    for rule in rules:
        try:
            yield parse(rule.pattern), rule
        except ValueError as error:
            raise ValueError(f"{what} {rule.line}: {error}") from None


class AccessOptions(PluginOptions):
    """Options of `access`."""

    lists: tuple[ListOptions, ...] = Field(
        min_length=1, max_length=50, description="Lists, asked in order; the first match of all decides."
    )
    at: Literal["connect", "helo", "mail", "rcpt"] = Field(
        "rcpt", description="Stage at which all lists of this entry are looked at."
    )
    delimiter: str = Field(
        "", max_length=1, description="What begins an extension of a local part (`+`), so that `user@` has its, too."
    )

    @model_validator(mode="after")
    def _in_time(self) -> AccessOptions:
        order = list(Stage)
        for number, listed in enumerate(self.lists, 1):
            known = _KNOWN_AT[listed.match]
            if order.index(known) > order.index(Stage(self.at)):
                raise ValueError(
                    f"list {number}: {listed.match} is known at {known}, and this entry looks at {self.at}"
                )
        return self


class AccessPolicy(Policy):
    """Does what the line that matched says."""

    name = "access"
    Options = AccessOptions
    checks = lint.CHECKS
    options: AccessOptions

    def __init__(self, options: AccessOptions) -> None:
        super().__init__(options)
        self.narrow({Stage(options.at)})

    def ways(self) -> Iterable[Way]:
        return lint.ways(self.options, FILE_OCTETS)

    def lint(self, setting: Setting) -> Iterable[Remark]:
        return lint.remarks(self.options, FILE_OCTETS)

    def on_connect(self, access: Access) -> Verdict:
        # A greeting that refuses is 554, and one that defers ends the connection (RFC 5321 section 3.1 and 3.8).
        return _verdict(access, refuse=554, postpone=421)

    def on_helo(self, access: Access) -> Verdict:
        return _verdict(access)

    def on_mail(self, access: Access) -> Verdict:
        return _verdict(access)

    def on_rcpt(self, access: Access) -> Verdict:
        return _verdict(access)


def _verdict(access: Access, *, refuse: int = 550, postpone: int = 450) -> Verdict:
    reason = f"{access.where}: {access.match} {access.pattern}"
    if access.text:
        reason += f" ({access.text})"
    match access.action:
        case AccessAction.NONE:
            return PROCEED
        case AccessAction.OK | AccessAction.DUNNO:
            return Verdict(Action.PROCEED, reason=reason)
        case AccessAction.ACCEPT:
            return accept(reason)
        case AccessAction.DISCARD:
            return discard(reason)
        case AccessAction.QUARANTINE:
            return quarantine(reason)
        case AccessAction.REJECT:
            code, text = access.code or refuse, access.text or "access denied"
            say = disconnect if code in _HANG_UP else reject
        case AccessAction.DEFER:
            code, text = access.code or postpone, access.text or "try again later"
            say = disconnect if code in _HANG_UP else defer
    return say(access.detail or "7.1", text, code=code, reason=reason)


class _List:
    """A list made ready; `place` is where it stands in the entry, from 1."""

    def __init__(self, options: ListOptions, place: int, services: Services) -> None:
        self.match = options.match
        self.path = options.file
        self._place = place
        self._table = options.from_entries() if options.entries else None
        self._file = (
            WatchedFile(options.file, options.from_file, services.clock, limit=FILE_OCTETS) if options.file else None
        )

    async def start(self) -> None:
        if self._file:
            await self._file.start()

    async def find(self, subject: Subject) -> Rule | None:
        table = await self._file.current() if self._file else self._table
        return table.find(subject) if table else None

    def where(self, rule: Rule) -> str:
        """How the record names a line."""
        return f"{self.path}:{rule.line}" if self.path else f"list {self._place}, entry {rule.line}"


class AccessPlugin(Plugin):
    """Looks up client, names, sender and recipient in lists, in order, until a line decides."""

    name = "access"
    Options = AccessOptions
    policy = AccessPolicy
    options: AccessOptions

    def __init__(self, options: AccessOptions, services: Services) -> None:
        super().__init__(options, services)
        self._lists = tuple(_List(listed, place, services) for place, listed in enumerate(options.lists, 1))
        named = any(listed.match is Match.NAME for listed in options.lists)
        self.narrow({Stage(options.at)}, without=() if named else {ReverseName})

    async def start(self) -> None:
        for listed in self._lists:
            await listed.start()

    @finds(Stage.CONNECT)
    async def at_connect(self, session: Session, name: ReverseName | None) -> Access:
        """What the lists say of a client."""
        return await self._find(session, name)

    @finds(Stage.HELO)
    async def at_helo(self, session: Session, name: ReverseName | None) -> Access:
        """What they say of it and of the name it gave."""
        return await self._find(session, name)

    @finds(Stage.MAIL)
    async def at_mail(self, transaction: Transaction, name: ReverseName | None) -> Access:
        """And of its sender."""
        return await self._find(transaction.session, name, transaction)

    @finds(Stage.RCPT)
    async def at_rcpt(self, transaction: Transaction, recipient: Recipient, name: ReverseName | None) -> Access:
        """And of one recipient."""
        return await self._find(transaction.session, name, transaction, recipient)

    async def _find(
        self,
        session: Session,
        name: ReverseName | None,
        transaction: Transaction | None = None,
        recipient: Recipient | None = None,
    ) -> Access:
        """The first line of all lists that decides; else the first that says `dunno`, which ends its own list only."""
        passed: Access | None = None
        for listed in self._lists:
            subject = self._subject(listed.match, session, name, transaction, recipient)
            rule = await listed.find(subject) if subject else None
            if rule is None:
                continue
            result = rule.result
            found = Access(
                result.action,
                listed.where(rule),
                listed.match.value,
                ("!" if rule.negated else "") + rule.pattern,
                result.code,
                result.detail,
                result.text,
            )
            if result.action is not AccessAction.DUNNO:
                MATCHES.labels(listed.match.value, result.action.value).inc()
                return found
            passed = passed or found
        return passed or Access(AccessAction.NONE)

    def _subject(
        self,
        match: Match,
        session: Session,
        name: ReverseName | None,
        transaction: Transaction | None,
        recipient: Recipient | None,
    ) -> Subject | None:
        """What to look up; None when it is not known."""
        match match:
            case Match.CLIENT:
                return client_subject(session.client)
            case Match.NAME:
                return name_subject(_name(session, name)) if _name(session, name) else None
            case Match.HELO:
                return name_subject(session.helo) if session.helo else None
            case Match.SENDER:
                return address_subject(transaction.sender, self.options.delimiter) if transaction else None
            case Match.RECIPIENT:
                return address_subject(recipient.address, self.options.delimiter) if recipient else None


def _name(session: Session, reverse: ReverseName | None) -> str:
    """The client's name, confirmed by its address or given by a trusted XCLIENT; ``unknown`` when it has none.

    Empty when nobody knows, which is no evidence: DNS did not answer, or nobody asked.
    """
    if session.name:
        return session.name
    if reverse is None or reverse.result is AuthResult.TEMPERROR:
        return ""
    return reverse.name or "unknown"
