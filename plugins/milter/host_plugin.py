"""`milter-host`: a milter written with pymilter, run in Gatepost's own process and without a socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from prometheus_client import Gauge
from pydantic import Field, create_model

from gateway.sdk import (
    Finder,
    Finding,
    Message,
    MilterReply,
    PluginOptions,
    ReverseName,
    Services,
    Session,
    Size,
    Stage,
    Transaction,
)
from plugins.milter.content import MEMORY_OCTETS, HeldContent
from plugins.milter.context import Limits
from plugins.milter.crew import Crew, Waits, at_once
from plugins.milter.host import Host, Visit, stages
from plugins.milter.host_load import load
from plugins.milter.macros import MacroName
from plugins.milter.meters import Meters
from plugins.milter.policy import MilterPolicy
from plugins.milter.stages import MilterStages

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


class MilterHostPlugin(MilterStages):
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
        self.meters = Meters(name)
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

    def shortcut(self, finder: Finder) -> Callable[..., Finding | None] | None:
        """Where the event loop makes the calls, none of them waits for anything but content that is in a file."""
        if self._host.crew.most:
            return None
        if finder.stage is Stage.MESSAGE:
            return self._message_at_once
        method = getattr(self, finder.method)
        return lambda *inputs: at_once(method(*inputs))

    def _message_at_once(
        self, transaction: Transaction, message: Message, reverse: ReverseName | None
    ) -> MilterReply | None:
        """`on_message` where the content is in memory; None where it is not."""
        if message.content.size > MEMORY_OCTETS:
            return None
        try:
            octets = at_once(message.octets(MEMORY_OCTETS))
        except Waits:
            # The milter has heard nothing so far.
            return None
        held = HeldContent(octets, message.content.eight_bit)
        return at_once(self.on_message(transaction, Message(message.fields, held), reverse))

    def party(self, session: Session) -> Visit:
        visit = self._visits.get(session.id)
        if visit is None or visit.busy:
            # Where the last one who asked was called off a moment ago, what the milter heard meanwhile nobody knows.
            visit = self._visits[session.id] = Visit(self._host)
        return visit

    async def leave(self, session: Session) -> None:
        visit = self._visits.pop(session.id, None)
        if visit is not None:
            await visit.end()
