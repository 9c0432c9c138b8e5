"""The plugin that asks a policy server, its options and its policy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from prometheus_client import Counter, Histogram
from pydantic import Field, field_validator

from gateway.sdk import (
    PROCEED,
    Action,
    DelegatedAction,
    Duration,
    EndpointOption,
    Message,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    ReverseName,
    Services,
    Session,
    Size,
    Stage,
    Transaction,
    Verdict,
    When,
    accept,
    acts,
    defer,
    dial,
    discard,
    disconnect,
    get_logger,
    quarantine,
    reject,
)
from gateway.sdk.lint import Trust, Way
from plugins.delegation.actions import ActionError, Word, parse_action
from plugins.delegation.attributes import PostfixVersion, Question, attributes
from plugins.delegation.codec import CodecError, encode
from plugins.delegation.service import Bounds, Service

_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_HANG_UP: Final = frozenset({421, 521})
_WHEN: Final = {Word.DEFER_IF_PERMIT: When.IF_PERMIT, Word.DEFER_IF_REJECT: When.IF_REJECT}

REQUESTS = Counter("gatepost_delegation_requests", "Requests to policy servers.", ["service", "action"])
SECONDS = Histogram(
    "gatepost_delegation_seconds", "Time until a policy server has answered.", ["service"], buckets=_SECONDS
)

_log = get_logger()

AskedAt = Literal["connect", "helo", "mail", "rcpt", "data", "message"]


class DelegationOptions(PluginOptions):
    """Options of `delegation`."""

    connect: EndpointOption = Field(
        description="Where the policy server listens: `host:port`, `inet:host:port` or `unix:/path`."
    )
    at: tuple[AskedAt, ...] = Field(
        ("rcpt",), min_length=1, description="Stages at which it is asked; at `rcpt` once per recipient."
    )
    policy_context: str = Field("", max_length=1000, description="Sent as `policy_context`, to tell entries apart.")
    default_action: str = Field(
        "",
        max_length=1000,
        description="Action to take when it does not answer; needs `on_error: proceed`, which alone means DUNNO.",
    )
    postfix: PostfixVersion = Field(
        PostfixVersion.V3_12, description="Postfix version whose attributes are sent: `3.7`, `3.8` or `3.12`."
    )
    connections: int = Field(50, gt=0, le=10_000, description="Connections at once, per worker; more have to wait.")
    idle: Duration = Field(300.0, ge=0, description="How long a connection is kept that nobody needs.")
    requests: int = Field(0, ge=0, description="Requests over one connection; 0 means any number.")
    reply_size: Size = Field(8192, ge=64, le=1 << 20, description="Most octets of a reply.")

    @field_validator("default_action")
    @classmethod
    def _understood(cls, value: str) -> str:
        if value:
            parse_action(value, "")
        return value


class PolicyServerError(OSError):
    """The server is there and does not answer as it must."""


class DelegationPolicy(Policy):
    """Does what the policy server says."""

    name = "delegation"
    Options = DelegationOptions
    options: DelegationOptions

    def __init__(self, options: DelegationOptions) -> None:
        super().__init__(options)
        self.narrow({Stage(stage) for stage in options.at})
        self._default = parse_action(options.default_action, "default_action") if options.default_action else None

    def ways(self) -> Iterable[Way]:
        for stage in self.options.at:
            yield Way(Stage(stage), Action.ACCEPT, Trust.SERVICE, path=("connect",), what=str(self.options.connect))

    def on_connect(self, found: DelegatedAction | None) -> Verdict:
        return self._verdict(found)

    def on_helo(self, found: DelegatedAction | None) -> Verdict:
        return self._verdict(found)

    def on_mail(self, found: DelegatedAction | None) -> Verdict:
        return self._verdict(found)

    def on_rcpt(self, found: DelegatedAction | None) -> Verdict:
        return self._verdict(found)

    def on_data(self, found: DelegatedAction | None) -> Verdict:
        return self._verdict(found)

    def on_message(self, found: DelegatedAction | None) -> Verdict:
        return self._verdict(found)

    def _verdict(self, found: DelegatedAction | None) -> Verdict:
        """Without a finding the server has failed, and the entry's owner wants to proceed."""
        found = found or self._default
        if found is None:
            return PROCEED
        reason = f"{found.service}: {found.action} {found.text}".rstrip()
        if found.code:
            return _reply(found, reason)
        match Word(found.action):
            case Word.OK:
                return accept(reason)
            case Word.DISCARD:
                return discard(reason)
            case Word.HOLD:
                return quarantine(reason)
            case Word.REJECT:
                return reject(found.detail or "7.1", found.text or "access denied", code=554, reason=reason)
            case Word.DEFER | Word.DEFER_IF_PERMIT | Word.DEFER_IF_REJECT as word:
                when = _WHEN.get(word, When.ALWAYS)
                text = found.text or "try again later"
                return defer(found.detail or "7.1", text, code=450, reason=reason, when=when)
        return Verdict(Action.PROCEED, reason=reason, edits=found.edits)


def _reply(found: DelegatedAction, reason: str) -> Verdict:
    """A reply code of its own. After 421 and 521 the connection ends (access(5))."""
    permanent = found.code >= 500
    text = found.text or ("access denied" if permanent else "try again later")
    say = disconnect if found.code in _HANG_UP else reject if permanent else defer
    return say(found.detail or "7.1", text, code=found.code, reason=reason)


class DelegationPlugin(Plugin):
    """Asks a server that speaks the Postfix policy protocol."""

    name = "delegation"
    Options = DelegationOptions
    policy = DelegationPolicy
    options: DelegationOptions

    def __init__(self, options: DelegationOptions, services: Services) -> None:
        super().__init__(options, services)
        self.narrow({Stage(stage) for stage in options.at})

    async def start(self) -> None:
        options = self.options
        bounds = Bounds(options.connections, options.idle, options.requests, options.reply_size)
        self._service = Service(
            str(options.connect), lambda: dial(options.connect, self.services.dns), self.services.clock, bounds
        )

    async def close(self) -> None:
        self._service.close()

    async def hung_up(self, session: Session) -> None:
        """Let others have the session's connection."""
        self._service.part(session.id)

    @acts(Stage.CONNECT)
    async def at_connect(self, session: Session, name: ReverseName | None) -> DelegatedAction:
        """Ask about a client."""
        return await self._ask(Question(Stage.CONNECT, session, name, context=self.options.policy_context))

    @acts(Stage.HELO)
    async def at_helo(self, session: Session, name: ReverseName | None) -> DelegatedAction:
        """Ask when it has given its name."""
        return await self._ask(Question(Stage.HELO, session, name, context=self.options.policy_context))

    @acts(Stage.MAIL)
    async def at_mail(self, transaction: Transaction, name: ReverseName | None) -> DelegatedAction:
        """Ask about a sender."""
        return await self._ask_about(Stage.MAIL, transaction, name)

    @acts(Stage.RCPT)
    async def at_rcpt(
        self, transaction: Transaction, recipient: Recipient, name: ReverseName | None
    ) -> DelegatedAction:
        """Ask about one recipient."""
        return await self._ask_about(Stage.RCPT, transaction, name, recipient=recipient)

    @acts(Stage.DATA)
    async def at_data(self, transaction: Transaction, name: ReverseName | None) -> DelegatedAction:
        """Ask when all recipients are known."""
        return await self._ask_about(Stage.DATA, transaction, name)

    @acts(Stage.MESSAGE)
    async def at_message(self, transaction: Transaction, message: Message, name: ReverseName | None) -> DelegatedAction:
        """Ask when the size of the message is known."""
        return await self._ask_about(Stage.MESSAGE, transaction, name, message=message)

    async def _ask_about(
        self,
        stage: Stage,
        transaction: Transaction,
        name: ReverseName | None,
        *,
        recipient: Recipient | None = None,
        message: Message | None = None,
    ) -> DelegatedAction:
        context = self.options.policy_context
        return await self._ask(
            Question(stage, transaction.session, name, transaction, recipient, message, context=context)
        )

    async def _ask(self, question: Question) -> DelegatedAction:
        service, session = self._service, question.session
        request = encode(attributes(question, self.options.postfix))
        began = self.services.clock.monotonic()
        counted = "failed"
        try:
            found = parse_action(await service.ask(session.id, request), service.name)
        except (CodecError, ActionError) as error:
            raise PolicyServerError(f"{service.name}: {error}") from error
        else:
            counted = f"{found.code // 100}xx" if found.code else found.action.lower()
        finally:
            REQUESTS.labels(service.name, counted).inc()
            SECONDS.labels(service.name).observe(self.services.clock.monotonic() - began)
        _tell(found, question)
        return found


def _tell(found: DelegatedAction, question: Question) -> None:
    """INFO and WARN ask for a line in the log."""
    if found.action not in (Word.INFO, Word.WARN):
        return
    sender = str(question.transaction.sender) if question.transaction else ""
    recipient = str(question.recipient.address) if question.recipient else ""
    fields = {
        "session": question.session.id,
        "stage": question.stage.value,
        "service": found.service,
        "sender": sender,
        "recipient": recipient,
        "text": found.text,
    }
    if found.action == Word.WARN:
        _log.warning("delegation.said", **fields)
    else:
        _log.info("delegation.said", **fields)
