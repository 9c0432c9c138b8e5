"""`milter-host`: a milter written with pymilter, run in Gatepost's own process and without a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from prometheus_client import Gauge
from pydantic import Field, create_model

from gateway.sdk import (
    Message,
    MilterReply,
    Plugin,
    PluginOptions,
    Recipient,
    ReverseName,
    Services,
    Session,
    Size,
    Stage,
    Transaction,
    acts,
)
from plugins.milter.context import Limits
from plugins.milter.crew import Crew
from plugins.milter.host import Host, Visit, stages
from plugins.milter.host_load import load
from plugins.milter.macros import Facts, MacroName, client_name
from plugins.milter.meters import Meters
from plugins.milter.policy import MilterPolicy

STUCK = Gauge(
    "gatepost_milter_host_stuck_threads",
    "Threads that hang in a milter, and that nobody waits for any more.",
    ["milter"],
    multiprocess_mode="livesum",
)


if TYPE_CHECKING:
    _Named = PluginOptions
else:
    # Python keeps the word for itself, so that the field cannot be written down as others are.
    _Named = create_model(
        "_Named",
        __base__=PluginOptions,
        **{
            "class": (
                str,
                Field(description="The milter's class: `package.module:Class`, or its name in `file`."),
            )
        },
    )


class HostOptions(_Named):
    """Options of `milter-host`."""

    file: str = Field("", description="A Python file that has the class, in place of an installed module.")
    options: dict[str, Any] = Field(
        {}, max_length=100, description="Arguments of the class by name, for each instance."
    )
    name: str = Field("", max_length=64, description="What it is called in records and metrics; by default its class.")
    threads: int = Field(
        8,
        ge=0,
        le=256,
        description="Threads for its calls, per worker; more calls at once wait. With 0 the event loop makes them.",
    )
    edits: int = Field(1000, ge=0, le=100_000, description="Most changes to one message, pieces of a body not counted.")
    body_size: Size = Field(50 << 20, description="Largest body that it may put in place of another.")
    macros: dict[MacroName, str] = Field(
        {}, max_length=40, description="Fixed values of macros, such as `{daemon_name}: ORIGINATING`."
    )

    @property
    def class_name(self) -> str:
        """The option `class`."""
        name: str = getattr(self, "class")
        return name


class MilterHostPlugin(Plugin):
    """Calls one milter class: an instance for each session, in threads of its own."""

    name = "milter-host"
    Options: ClassVar[type[PluginOptions]] = HostOptions
    policy = MilterPolicy
    timeout = 30.0
    options: HostOptions

    def __init__(self, options: PluginOptions, services: Services) -> None:
        super().__init__(options, services)
        given = self.options
        loaded = load(given.class_name, given.file, given.options)
        name = given.name or loaded.name
        self._meters = Meters(name)
        self._visits: dict[str, Visit] = {}
        self._host = Host(
            name=name,
            make=loaded.make,
            error=loaded.error,
            steps=loaded.steps,
            farewell=loaded.farewell,
            limits=Limits(given.edits, given.body_size),
            values=given.macros,
            crew=Crew(given.threads, f"milter-{name}", STUCK.labels(name).set),
        )
        if loaded.steps is not None:
            self.narrow(stages(loaded.steps))

    async def close(self) -> None:
        self._visits.clear()
        self._host.crew.close()

    async def hung_up(self, session: Session) -> None:
        await self._end(session)

    @acts(Stage.CONNECT)
    async def on_connect(self, session: Session, reverse: ReverseName | None) -> MilterReply:
        """A client has connected."""
        await self._end(session)
        return await self._ask(Stage.CONNECT, session, reverse)

    @acts(Stage.HELO)
    async def on_helo(self, session: Session, reverse: ReverseName | None) -> MilterReply:
        """It has said who it is."""
        return await self._ask(Stage.HELO, session, reverse)

    @acts(Stage.MAIL)
    async def on_mail(self, transaction: Transaction, reverse: ReverseName | None) -> MilterReply:
        """It has a message."""
        return await self._ask(Stage.MAIL, transaction.session, reverse, transaction)

    @acts(Stage.RCPT)
    async def on_rcpt(self, transaction: Transaction, recipient: Recipient, reverse: ReverseName | None) -> MilterReply:
        """For this one."""
        return await self._ask(Stage.RCPT, transaction.session, reverse, transaction, recipient)

    @acts(Stage.DATA)
    async def on_data(self, transaction: Transaction, reverse: ReverseName | None) -> MilterReply:
        """All recipients are known."""
        return await self._ask(Stage.DATA, transaction.session, reverse, transaction)

    @acts(Stage.MESSAGE)
    async def on_message(self, transaction: Transaction, message: Message, reverse: ReverseName | None) -> MilterReply:
        """The message is there, as entries before this one have left it."""
        return await self._ask(Stage.MESSAGE, transaction.session, reverse, transaction, message=message)

    async def _ask(
        self,
        stage: Stage,
        session: Session,
        reverse: ReverseName | None,
        transaction: Transaction | None = None,
        recipient: Recipient | None = None,
        message: Message | None = None,
    ) -> MilterReply:
        visit = self._visits.get(session.id)
        if visit is None or visit.busy:
            # Where the last one who asked was called off a moment ago, what the milter heard meanwhile nobody knows.
            visit = self._visits[session.id] = Visit(self._host)
        facts = Facts(self.services.hostname, session, client_name(session, reverse), transaction, recipient)
        began = self.services.clock.monotonic()
        reply = await visit.come_to(stage, facts, message)
        self._meters.replied(stage, reply.action, self.services.clock.monotonic() - began)
        for edit in reply.edits:
            self._meters.edited(edit)
        return reply

    async def _end(self, session: Session) -> None:
        visit = self._visits.pop(session.id, None)
        if visit is not None:
            await visit.end()
