"""A bench for authors of plugins and policies: fakes of all services, makers of sessions and messages, and `Bench`.

    bench = Bench(dns=FakeDns(a={"2.2.0.192.bl.test": ["127.0.0.2"]}))
    finding = bench.find("dnsbl", {"zones": {"bl.test": 1}}, session=make_session(client="192.0.2.2"))
    verdict = bench.judge("dnsbl", {"zones": {"bl.test": 1}}, findings=[finding])

Everything is synchronous and nothing touches the network, but that `FakeMilter` listens on loopback. Options are parsed
as the configuration file's are, so a misspelt one fails here too. The fakes pass the same contract tests as the real
services (tests/contract).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import itertools
from collections.abc import Coroutine, Generator, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from gateway.mail.address import NULL_SENDER, Sender, parse_forward_path, parse_reverse_path
from gateway.mail.envelope import MailParameters, Recipient
from gateway.mail.message import split_header
from gateway.mail.reply import Reply
from gateway.mail.session import ClientCertificate, Session, Tls
from gateway.sdk.deprecation import old_names
from gateway.sdk.ending import Ending, Outcome
from gateway.sdk.fake_milter import FakeMilter, MilterFault, MilterTold
from gateway.sdk.fakes import (
    BytesContent,
    FakeCallouts,
    FakeDirectory,
    FakeDns,
    FakeLines,
    FakeOutbox,
    FakeState,
    ManualClock,
)
from gateway.sdk.findings import Finding
from gateway.sdk.plugin import Finder, Plugin
from gateway.sdk.policy import Given, Policy
from gateway.sdk.services import Callouts, Directory, Dns, Lines, Outbox, Services, State
from gateway.sdk.stage import Message, Stage, Transaction
from gateway.sdk.verdict import Verdict

__all__ = [
    "Bench",
    "BytesContent",
    "FakeCallouts",
    "FakeDirectory",
    "FakeDns",
    "FakeLines",
    "FakeMilter",
    "FakeOutbox",
    "FakeState",
    "ManualClock",
    "MilterFault",
    "MilterTold",
    "Started",
    "make_client_certificate",
    "make_message",
    "make_recipient",
    "make_session",
    "make_transaction",
    "parse_options",
    "plugin_class",
    "policy_class",
]

if not TYPE_CHECKING:
    # Type checkers shall know only the names that are here.
    __getattr__ = old_names(__name__)

Options = Mapping[str, Any] | list[Any] | str | None
_T = TypeVar("_T")

_numbers = itertools.count(1)


def make_session(
    client: str = "192.0.2.1",
    *,
    helo: str = "client.example",
    name: str = "",
    tls: Tls | None = None,
    trusted: bool = False,
    started: float = 1_000_000_000.0,
) -> Session:
    """A session of a client at this address that has said EHLO."""
    address = ipaddress.ip_address(client)
    return Session(
        id=f"TEST{next(_numbers):09}",
        client=address,
        client_port=40_000,
        peer=address,
        listener="127.0.0.1:25",
        started=started,
        helo=helo,
        esmtp=True,
        tls=tls,
        name=name,
        trusted=trusted,
    )


def make_client_certificate(
    subject: str = "partner", *names: str, issuer: str = "Partners CA", problem: str = ""
) -> ClientCertificate:
    """A certificate that a client showed, for `Tls.client`; with a `problem` no CA of the listener's vouched for it."""
    fingerprint = hashlib.sha256(subject.encode()).hexdigest().upper()
    fingerprint = ":".join(fingerprint[at : at + 2] for at in range(0, 64, 2))
    if problem:
        return ClientCertificate(False, fingerprint, problem)
    return ClientCertificate(True, fingerprint, "", subject, names, issuer, "1F")


def make_recipient(address: str = "anna@example.org") -> Recipient:
    """A recipient as RCPT would give it, the bare ``postmaster`` included."""
    return Recipient(parse_forward_path(address, utf8=True))


def make_transaction(
    session: Session | None = None,
    *,
    sender: str = "ben@sender.example",
    recipients: Sequence[str] = (),
    parameters: MailParameters | None = None,
) -> Transaction:
    """A transaction; the empty sender is the null sender, and `recipients` are those accepted up to now."""
    session = session or make_session()
    reverse: Sender = parse_reverse_path(sender, utf8=True) if sender else NULL_SENDER
    accepted = tuple(make_recipient(r) for r in recipients)
    return Transaction(session.id + "1", session, reverse, parameters or MailParameters(), accepted)


def make_message(content: bytes = b"Subject: test\r\n\r\nHello\r\n") -> Message:
    """A message from its octets, header section and body."""
    body = BytesContent(content)
    fields, _ = split_header(body.data)
    return Message(tuple(fields), body)


class Started:
    """A plugin on the bench (`Bench.started`), as `plugin`."""

    def __init__(self, plugin: Plugin, runner: asyncio.Runner) -> None:
        self.plugin = plugin
        self._runner = runner

    def find(
        self,
        stage: Stage | None = None,
        *,
        finding: type[Finding] | None = None,
        session: Session | None = None,
        transaction: Transaction | None = None,
        recipient: Recipient | None = None,
        message: Message | None = None,
        findings: Iterable[Finding] = (),
    ) -> Finding:
        """Run a finder and give the finding; see `Bench.find`."""
        finder = _choose(self.plugin, stage, finding)
        inputs = _Inputs(session, transaction, recipient, message, findings)
        found = self.run(getattr(self.plugin, finder.method)(*inputs.take(finder.inputs, finder.optional)))
        if not isinstance(found, finder.finding):
            where = f"{type(self.plugin).__qualname__}.{finder.method}"
            raise TypeError(f"{where} gave {found!r} and no {finder.finding.__name__}")
        return found

    def end(self, ending: Ending) -> None:
        """Tell it how something ended (`Plugin.ended`)."""
        self.run(self.plugin.ended(ending))

    def hang_up(self, session: Session) -> None:
        """Tell it that a session is over (`Plugin.hung_up`)."""
        self.run(self.plugin.hung_up(session))

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the plugin's event loop."""
        return self._runner.run(work)


class Bench:
    """Runs one finder of a plugin, or one hook of a policy, with fakes behind it; their state lasts from call to call.

    Plugins and policies are given as classes or by the name of their entry point; a plugin where a policy is asked for
    means its default policy. Options are a dictionary or YAML text.
    """

    def __init__(
        self,
        *,
        dns: Dns | None = None,
        state: State | None = None,
        clock: ManualClock | None = None,
        directory: Directory | None = None,
        lines: Lines | None = None,
        outbox: Outbox | None = None,
        callouts: Callouts | None = None,
        hostname: str = "mx.example.org",
    ) -> None:
        self.clock: ManualClock = clock or ManualClock()
        self.dns: Dns = dns or FakeDns()
        self.state: State = state or FakeState(self.clock)
        self.directory: Directory = directory or FakeDirectory()
        self.lines: Lines = lines or FakeLines(self.clock)
        self.outbox: Outbox = outbox or FakeOutbox()
        self.callouts: Callouts = callouts or FakeCallouts()
        self.services: Services = Services(
            self.dns, self.state, self.clock, self.directory, hostname, hostname, self.lines, self.outbox, self.callouts
        )

    def find(
        self,
        plugin: type[Plugin] | str,
        options: Options = None,
        stage: Stage | None = None,
        *,
        finding: type[Finding] | None = None,
        session: Session | None = None,
        transaction: Transaction | None = None,
        recipient: Recipient | None = None,
        message: Message | None = None,
        findings: Iterable[Finding] = (),
    ) -> Finding:
        """Start the plugin, run its finder, close it, give the finding.

        Where it has several, `stage`, or the kind of `finding`, says which.

        Raises LookupError when with these options it has none there: the pipeline would not run it.
        """
        with self.started(plugin, options) as made:
            return made.find(
                stage,
                finding=finding,
                session=session,
                transaction=transaction,
                recipient=recipient,
                message=message,
                findings=findings,
            )

    @contextlib.contextmanager
    def started(self, plugin: type[Plugin] | str, options: Options = None) -> Generator[Started, None, None]:
        """A plugin that goes on from call to call, for those that hold something for each session."""
        cls = plugin_class(plugin)
        with asyncio.Runner() as runner:
            made = cls(cls.Options.model_validate(parse_options(options)), self.services)
            runner.run(made.start())
            try:
                yield Started(made, runner)
            finally:
                runner.run(made.close())

    def end(
        self,
        plugin: type[Plugin] | str,
        options: Options = None,
        *,
        outcome: Outcome = Outcome.ACCEPTED,
        stage: Stage | None = Stage.MESSAGE,
        session: Session | None = None,
        transaction: Transaction | None = None,
        recipient: Recipient | None = None,
        reply: Reply | None = None,
        entry: str = "",
        size: int = 0,
        findings: Iterable[Finding] = (),
    ) -> None:
        """Start the plugin, tell it how something ended (`Plugin.ended`), close it."""
        session = session or (transaction.session if transaction else make_session())
        with self.started(plugin, options) as made:
            made.end(Ending(outcome, stage, session, transaction, recipient, reply, entry, size, tuple(findings)))

    def judge(
        self,
        policy: type[Policy] | type[Plugin] | str,
        options: Options = None,
        stage: Stage | None = None,
        *,
        session: Session | None = None,
        transaction: Transaction | None = None,
        recipient: Recipient | None = None,
        message: Message | None = None,
        findings: Iterable[Finding] = (),
    ) -> Verdict:
        """Run the policy's hook (that of `stage`, where it has several) and give its verdict.

        Raises LookupError when a finding that the hook must have is not among `findings`: the pipeline would not ask.
        """
        cls = policy_class(policy)
        made = cls(cls.Options.model_validate(parse_options(options, sole=cls.Options.sole)))
        findings = tuple(findings)
        # When a finding is known, only a pipeline can say.
        known = (stage,) if stage else tuple(Stage)
        made.wire(Given({kind: known for kind in map(type, findings)}, lambda kind: ()))
        if stage is None and len(made.hooks) != 1:
            raise ValueError(f"{cls.__qualname__} has {len(made.hooks)} hooks; say which stage")
        hook = made.hooks.get(stage or next(iter(made.hooks)))
        if hook is None:
            raise LookupError(f"{cls.__qualname__} has no hook at {stage}")
        inputs = _Inputs(session, transaction, recipient, message, findings)
        verdict = getattr(made, hook.name)(*inputs.take(hook.inputs, hook.optional))
        if not isinstance(verdict, Verdict):
            raise TypeError(f"{cls.__qualname__}.{hook.name} gave {verdict!r} and no verdict")
        return verdict


class _Inputs:
    """What a finder or hook may ask for; what the author left out is made up, but never a finding."""

    def __init__(
        self,
        session: Session | None,
        transaction: Transaction | None,
        recipient: Recipient | None,
        message: Message | None,
        findings: Iterable[Finding],
    ) -> None:
        session = session or (transaction.session if transaction else make_session())
        self._values: list[Any] = [
            session,
            transaction or make_transaction(session),
            recipient or make_recipient(),
            message or make_message(),
            *findings,
        ]

    def take(self, kinds: Sequence[type], optional: Sequence[bool] = ()) -> list[Any]:
        out: list[Any] = []
        for kind, may_miss in itertools.zip_longest(kinds, optional, fillvalue=False):
            assert isinstance(kind, type)
            value = next((v for v in self._values if isinstance(v, kind)), None)
            if value is None and not may_miss:
                raise LookupError(f"no {kind.__name__} was given")
            out.append(value)
        return out


def parse_options(options: Options, *, sole: str = "") -> dict[str, Any]:
    """Options from a dictionary or YAML text, ready for `Options.model_validate`; a bare list is the option `sole`."""
    data = yaml.safe_load(options) if isinstance(options, str) else options
    if data is None:
        return {}
    if sole and isinstance(data, list):
        return {sole: data}
    if not isinstance(data, Mapping):
        raise ValueError("options are a mapping")
    return dict(data)


def plugin_class(plugin: type[Plugin] | str) -> type[Plugin]:
    """The class itself, or the one whose entry point has this name; raises LookupError."""
    if not isinstance(plugin, str):
        return plugin
    cls = _load("gatepost.plugins", plugin)
    if not (isinstance(cls, type) and issubclass(cls, Plugin)):
        raise LookupError(f"no plugin is named {plugin}")
    return cls


def policy_class(policy: type[Policy] | type[Plugin] | str) -> type[Policy]:
    """The policy itself, the default policy of a plugin, or either by its entry point's name; raises LookupError."""
    found: Any = policy
    if isinstance(policy, str):
        found = _load("gatepost.policies", policy) or _load("gatepost.plugins", policy)
    if isinstance(found, type) and issubclass(found, Plugin):
        found = found.policy
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise LookupError(f"no policy is named {policy}")
    return found


def _load(group: str, name: str) -> Any:
    found = entry_points(group=group, name=name)
    return next(iter(found)).load() if found else None


def _choose(made: Plugin, stage: Stage | None, finding: type[Finding] | None) -> Finder:
    finders = [f for f in made.finders if (not stage or f.stage is stage) and (not finding or f.finding is finding)]
    if not finders and any(f.stage is stage for f in type(made).finders):
        raise LookupError(f"{type(made).__qualname__} runs nothing at {stage} with these options")
    if len(finders) != 1:
        where = f" at {stage}" if stage else ""
        raise ValueError(f"{type(made).__qualname__} has {len(finders)} finders{where}; say which stage")
    return finders[0]
