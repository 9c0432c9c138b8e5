"""Every public name of gateway.sdk and gateway.sdk.testing in the hands of an author, for the type checkers.

Nothing here runs. What stands in `assert_type` must be what the checkers make of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, assert_type

from pydantic import Field

from gateway.sdk import (
    END,
    NULL_SENDER,
    PROCEED,
    Access,
    AccessAction,
    Action,
    AddHeader,
    AddRecipient,
    Address,
    AddressError,
    Answer,
    Arc,
    Attachment,
    Attachments,
    AuthResult,
    Body,
    BodyContent,
    Callout,
    Callouts,
    CalloutState,
    ChangeHeader,
    ChangeSender,
    CheckMatch,
    ClientCertificate,
    Clock,
    Content,
    ContentChecks,
    Defect,
    DelegatedAction,
    DeleteHeader,
    DeleteRecipient,
    Detection,
    Directory,
    Disclaimer,
    Dkim,
    DkimSignature,
    Dlp,
    Dmarc,
    DmarcPolicy,
    Dns,
    Dnsbl,
    DnsStatus,
    DomainNames,
    DomainState,
    Duration,
    EarlyTalk,
    Edit,
    EditedContent,
    Ending,
    Endpoint,
    EndpointOption,
    FileContent,
    Finder,
    Finding,
    Flaw,
    Geo,
    Given,
    Going,
    Greylist,
    GreylistState,
    HeaderField,
    HeloName,
    Lines,
    ListHit,
    LocalParts,
    Mailbox,
    MailParameters,
    Message,
    MethodResult,
    MilterAction,
    MilterReply,
    Mime,
    MimePart,
    MimeText,
    Mx,
    Notify,
    OptionError,
    OptionsModel,
    Outbox,
    OutboxError,
    Outcome,
    Plugin,
    PluginOptions,
    Policy,
    PolicyOptions,
    Pool,
    Prioritize,
    Priority,
    Proof,
    Rate,
    Recipient,
    RecipientRule,
    RecipientState,
    RecipientStatus,
    Redirect,
    ReplaceBody,
    Reply,
    Reroute,
    Response,
    Ret,
    ReverseName,
    Sender,
    SenderDomain,
    Services,
    Session,
    Size,
    SpamScore,
    Spf,
    SpfResult,
    Stage,
    State,
    StateError,
    Store,
    Taken,
    Tls,
    Tlsa,
    Transaction,
    Turns,
    UriHit,
    UriHits,
    Verdict,
    VirusScan,
    WatchedFile,
    When,
    WhenDown,
    accept,
    acts,
    annotate,
    apply_edits,
    authentication_results,
    defer,
    dial,
    discard,
    disconnect,
    domain_of,
    edit_begun,
    field_value,
    find_addresses,
    find_domain,
    finds,
    get_logger,
    parse_endpoint,
    parse_forward_path,
    parse_mailbox,
    parse_reverse_path,
    progress,
    prove_author,
    quarantine,
    read_authors,
    read_file,
    read_mailboxes,
    reject,
    respond,
    show_domain,
    split_path,
)
from gateway.sdk.testing import (
    Bench,
    BytesContent,
    FakeCallouts,
    FakeDirectory,
    FakeDns,
    FakeLines,
    FakeMilter,
    FakeOutbox,
    FakeState,
    ManualClock,
    MilterFault,
    MilterTold,
    Started,
    make_client_certificate,
    make_message,
    make_recipient,
    make_session,
    make_transaction,
    parse_options,
    plugin_class,
    policy_class,
)

_log = get_logger()


class HostOptions(OptionsModel):
    """Options inside options."""

    sole: ClassVar[str] = "hosts"
    hosts: tuple[str, ...] = ()


class WideOptions(PluginOptions):
    """Options of every type that the SDK has."""

    going: ClassVar[Mapping[str, Going]] = {"server": Going("0.2", "0.3", "connect")}

    connect: EndpointOption = Endpoint("filter.example.org", 783)
    patience: Duration = Field(5.0, description="How long.")
    largest: Size = 1 << 20
    exempt: LocalParts = frozenset()
    hosts: HostOptions = HostOptions()
    file: str = ""


@dataclass(frozen=True, slots=True)
class Wide(Finding):
    """A finding of an author's own."""

    addresses: tuple[str, ...]
    state: DomainState = DomainState.UNKNOWN

    def idle(self) -> bool:
        return not self.addresses

    def authentication(self) -> tuple[MethodResult, ...]:
        return (MethodResult("x-wide", "pass", (("smtp.mailfrom", "example.org"),)),)


class WidePolicy(Policy):
    """Every stage, every input, every verdict."""

    name = "wide"
    version = "2"
    Options = WideOptions
    options: WideOptions

    def __init__(self, options: WideOptions) -> None:
        super().__init__(options)
        self.narrow({Stage.CONNECT, Stage.MESSAGE})

    def wire(self, given: Given) -> None:
        if Spf not in given.stages:
            problems = OptionError()
            problems.add(("hosts", 0), f"needs {given.givers(Spf)}", 3)
            problems.raise_if_any()
        self.ask(Stage.DATA, self.late, {Transaction: False, Spf: True})

    def late(self, transaction: Transaction, spf: Spf | None) -> Verdict:
        return PROCEED if spf is None or transaction.recipients else discard("nobody")

    def on_connect(self, session: Session, talk: EarlyTalk, listed: Dnsbl | None, geo: Geo | None) -> Verdict:
        hits: Sequence[ListHit] = listed.hits if listed else ()
        if talk.early or (geo and geo.asn == 64496):
            return disconnect("7.1", "go away", code=421, reason=f"{len(hits)} lists")
        shown: ClientCertificate | None = session.tls.client if isinstance(session.tls, Tls) else None
        return PROCEED if shown is not None and shown.verified else accept()

    def on_helo(self, name: HeloName, reverse: ReverseName) -> Verdict:
        return PROCEED if reverse.result is AuthResult.PASS and not name.problems else accept(name.name)

    def on_mail(self, transaction: Transaction, domain: SenderDomain, access: Access) -> Verdict:
        parameters: MailParameters = transaction.parameters
        if access.action is AccessAction.REJECT and parameters.body is Body.EIGHT_BIT and parameters.ret is Ret.FULL:
            return reject("7.1", "no", code=554, reason=access.where)
        return defer("4.3", "later", when=When.IF_PERMIT) if domain.state is DomainState.UNKNOWN else PROCEED

    def on_rcpt(self, recipient: Recipient, status: RecipientStatus, grey: Greylist, rate: Rate) -> Verdict:
        if status.state is RecipientState.UNKNOWN or status.when_down is WhenDown.ACCEPT or not rate.allowed:
            return reject("1.1", "unknown user")
        if Notify.NEVER in recipient.notify and grey.state is GreylistState.NEW:
            return PROCEED
        return annotate(AddRecipient(recipient), DeleteRecipient(recipient.address), Redirect(recipient))

    def on_message(
        self,
        message: Message,
        transaction: Transaction,
        spf: Spf | None,
        dkim: Dkim | None,
        dmarc: Dmarc | None,
        arc: Arc | None,
        mime: Mime | None,
        files: Attachments | None,
        checks: ContentChecks | None,
        dlp: Dlp | None,
        note: Disclaimer | None,
        virus: VirusScan | None,
        spam: SpamScore | None,
        links: UriHits | None,
        told: DelegatedAction | None,
        milter: MilterReply | None,
    ) -> Verdict:
        signatures: tuple[DkimSignature, ...] = dkim.signatures if dkim else ()
        parts: tuple[MimePart, ...] = mime.parts if mime else ()
        texts: tuple[MimeText, ...] = mime.texts if mime else ()
        defects: tuple[Defect, ...] = mime.defects if mime else ()
        attached: tuple[Attachment, ...] = files.items if files else ()
        flaws: tuple[Flaw, ...] = files.flaws if files else ()
        matches: tuple[CheckMatch, ...] = checks.matches if checks else ()
        detections: tuple[Detection, ...] = dlp.detections if dlp else ()
        uris: tuple[UriHit, ...] = links.hits if links else ()
        edits: list[Edit] = [AddHeader("X-Wide", str(len(parts)), END), ChangeHeader("Subject", 1, "x")]
        edits += [
            DeleteHeader("X-Old"),
            ReplaceBody(BodyContent(b"")),
            Reroute("smtp:a.example"),
            Prioritize(Priority.LOW),
            ChangeSender(NULL_SENDER),
        ]
        if (dmarc and dmarc.policy is DmarcPolicy.REJECT) or (spf and spf.result is SpfResult.FAIL):
            return quarantine("forged", *edits).only(transaction.recipients)
        if (virus and virus.infected) or (spam and spam.spam) or (note and note.edits) or (arc and arc.trusted):
            return accept(field_value("odd"), *edits)
        if (told and told.code) or (milter and milter.action is MilterAction.DISCARD):
            return discard(f"{signatures}{texts}{defects}{attached}{flaws}{matches}{detections}{uris}")
        fields: list[HeaderField] = apply_edits(message.fields, edits)
        content: Content = EditedContent(message.content, b"", 0)
        assert_type(message.first("subject"), str | None)
        return PROCEED if fields and content.size else accept()


class WidePlugin(Plugin):
    """Every service."""

    name = "wide"
    Options = WideOptions
    policy = WidePolicy
    timeout = 3.0
    options: WideOptions

    def __init__(self, options: WideOptions, services: Services) -> None:
        super().__init__(options, services)
        self._turns = Turns()
        self._pool: Pool[Any] = Pool(lambda connection: connection.close(), services.clock, idle=5.0, most=2)
        self._file: WatchedFile[list[str]] = WatchedFile(options.file, _lines_of, services.clock)
        self.narrow({Stage.MAIL}, without={Geo})

    async def start(self) -> None:
        await self._file.start()
        read: FileContent[list[str]] = read_file(self.options.file, _lines_of)
        _log.info("wide.started", lines=len(read.value))

    async def close(self) -> None:
        self._pool.close()

    @finds(Stage.MAIL)
    async def look(self, session: Session, transaction: Transaction, geo: Geo | None) -> Wide:
        dns: Dns = self.services.dns
        answer: Answer = await dns.lookup(session.client.reverse_pointer, "PTR")
        if answer.status is DnsStatus.FAILED:
            raise OSError(answer.problem)
        exchangers = [record.host for record in answer.records if isinstance(record, Mx)]
        progress()
        async with self._turns.of(session.id):
            reader, writer = await dial(self.options.connect, dns)
            await reader.readline()
            writer.close()
        return Wide((*exchangers, *await find_addresses("host.example", dns), *await self._file.current()))

    @acts(Stage.RCPT)
    async def count(self, recipient: Recipient, found: Wide) -> Rate:
        state: State = self.services.state
        clock: Clock = self.services.clock
        try:
            taken: Taken = await state.take(recipient.address.key, capacity=3, per_second=1.0)
            before: bytes | None = await state.put_new("k", b"v", self.options.patience)
        except StateError:
            return Rate(True, "", 0.0, clock.now())
        return Rate(taken.allowed and before is None, str(found.idle()), taken.remaining, taken.wait)

    @acts(Stage.MESSAGE)
    async def tell(self, message: Message, transaction: Transaction) -> MilterReply:
        edit_begun()
        directory: Directory = self.services.directory
        lines: Lines = self.services.lines
        outbox: Outbox = self.services.outbox
        callouts: Callouts = self.services.callouts
        sender: Sender = transaction.sender
        if isinstance(sender, Address):
            store: Store | None = directory.store(sender)
            rule: RecipientRule = await directory.rule(sender)
            callout: Callout = await callouts.ask(sender)
            if callout.state is CalloutState.UNKNOWN and store is None and rule is RecipientRule.NOT_OURS:
                await lines.early(transaction.session, 1.0)
        try:
            await outbox.send(NULL_SENDER, [], await message.octets(self.options.largest))
        except OutboxError as error:
            return MilterReply(MilterAction.TEMPFAIL, str(error))
        return MilterReply(MilterAction.CONTINUE, self.services.hostname)

    async def ended(self, ending: Ending) -> None:
        found = ending.finding(Wide)
        assert_type(found, Wide | None)
        reply: Reply | None = ending.reply
        if ending.outcome is Outcome.ACCEPTED and reply is not None:
            _log.debug("wide.ended", header=authentication_results(self.services.authserv_id, ending.findings))

    async def hung_up(self, session: Session) -> None:
        _log.debug("wide.hung_up", session=session.id)


def _lines_of(content: bytes) -> list[str]:
    return content.decode().splitlines()


def parse(text: str) -> Address | None:
    """Addresses and endpoints from text."""
    try:
        inner, _rest = split_path(text)
        assert_type(parse_reverse_path(inner), Sender)
        assert_type(parse_endpoint(text), Endpoint)
        return parse_mailbox(text, utf8=True) if text else parse_forward_path(inner)
    except AddressError:
        return None


class OwnContent:
    """An author's own content, by its shape alone."""

    size = 3
    eight_bit = False

    async def blocks(self) -> AsyncIterator[bytes]:
        yield b"abc"


def bench(choose: Callable[[str], bool]) -> Verdict:
    """Tests as authors write them."""
    clock = ManualClock()
    clock.advance(5)
    made = Bench(
        dns=FakeDns(a={"host.example": ["192.0.2.1"]}, fails=["broken.example"]),
        state=FakeState(clock),
        clock=clock,
        directory=FakeDirectory({"example.org": RecipientRule.ANY}),
        lines=FakeLines(clock, {"192.0.2.1": 0.5}),
        outbox=FakeOutbox(),
        callouts=FakeCallouts({"example.org": Callout(CalloutState.EXISTS, "250 ok")}),
    )
    tls = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384", client=make_client_certificate("partner.example"))
    session = make_session("192.0.2.1", helo="client.example", tls=tls)
    transaction = make_transaction(session, sender="anna@sender.example", recipients=["ben@example.org"])
    message = make_message(b"Subject: x\r\n\r\n")
    content: Content = BytesContent(b"abc") if choose("bytes") else OwnContent()
    found = made.find(WidePlugin, {"file": "x"}, Stage.MAIL, transaction=transaction)
    with made.started(plugin_class("wide"), "file: x") as started:
        assert_type(started, Started)
        started.end(Ending(Outcome.ACCEPTED, Stage.MESSAGE, session))
        started.hang_up(session)
    made.end(WidePlugin, parse_options("file: x"), outcome=Outcome.REJECTED, recipient=make_recipient())
    verdict = made.judge(policy_class("wide"), stage=Stage.MESSAGE, message=message, findings=[found])
    assert_type(verdict, Verdict)
    return verdict if verdict.action is Action.PROCEED and content.size else PROCEED


class TrustOptions(PolicyOptions):
    """Who is trusted by name, and what is done about others."""

    partners: DomainNames = frozenset({"example.com"})
    action: Response = Response.TAG


class Trusting(Policy):
    """Trust in an author's name."""

    name = "trusting"
    Options = TrustOptions
    options: TrustOptions

    def on_message(self, transaction: Transaction, message: Message, dmarc: Dmarc | None) -> Verdict:
        authors: tuple[Mailbox, ...] = read_authors(message) + read_mailboxes(message.all("Reply-To"))
        for author in authors:
            if not find_domain(author.domain, self.options.partners):
                continue
            proof = prove_author(author.domain, self.options.partners, dmarc=dmarc)
            if proof is Proof.UNPROVED:
                reason = f"{author} of {show_domain(author.domain)}, sent by {domain_of(transaction.sender)}"
                return respond(self.options.action, reason, detail="7.1", text="not accepted")
        return PROCEED


def show_tlsa(record: Tlsa) -> str:
    """What DNS says of a mail host's certificate."""
    return f"{record.usage} {record.selector} {record.matching} {record.data.hex()}"


class Short(WidePlugin):
    """A finder that mostly has nothing to wait for."""

    name = "short"

    def shortcut(self, finder: Finder) -> Callable[..., Finding | None] | None:
        return (lambda *inputs: None) if finder.stage is Stage.CONNECT else None


class Plain(Policy):
    """Options inside of the class, as they are written most often."""

    name = "plain"

    class Options(PolicyOptions):
        """Its options."""

        strict: bool = False

    def on_rcpt(self, recipient: Recipient) -> Verdict:
        return PROCEED if self.options.strict else reject("1.1", str(recipient.address))


def try_with_a_milter() -> None:
    def answer(told: MilterTold) -> MilterReply | MilterFault:
        refused = MilterReply(MilterAction.REJECT, "m", 550, "7.1", told.sender)
        return refused if told.recipients else MilterFault.DIES

    with FakeMilter({Stage.RCPT: answer, Stage.MESSAGE: MilterAction.ACCEPT, Stage.DATA: MilterFault.HANGS}) as milter:
        Bench().find("milter", {"connect": assert_type(milter.address, str)}, Stage.RCPT)
        assert_type(milter.messages, list[MilterTold])
