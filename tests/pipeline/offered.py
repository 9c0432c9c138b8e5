"""Things that an entry point can name, for tests of loading."""

from __future__ import annotations

from typing import ClassVar

from gateway.sdk import PROCEED, Duration, Finding, Plugin, PluginOptions, Policy, Session, Stage, Verdict, finds


class ColourOptions(PluginOptions):
    shades: dict[str, int]
    wait: Duration = 1.0


class Colour(Finding):
    pass


class ColourPolicy(Policy):
    name = "colour"
    Options = ColourOptions

    def on_connect(self, colour: Colour) -> Verdict:
        return PROCEED


class ColourPlugin(Plugin):
    """Finds out the client's colour.

    And more.
    """

    name = "colour"
    Options = ColourOptions
    policy = ColourPolicy
    closed: ClassVar[list[str]] = []

    async def close(self) -> None:
        self.closed.append("colour")

    @finds(Stage.CONNECT)
    async def look(self, session: Session) -> Colour:
        return Colour()


class Grumpy(Plugin):
    """Refuses to start."""

    name = "grumpy"

    async def start(self) -> None:
        raise OSError("no licence")


class ColourBlind(Policy):
    """Wants a colour."""

    name = "colour-blind"

    def on_helo(self, colour: Colour) -> Verdict:
        return PROCEED


def not_a_class() -> None:
    """Named by a wrong entry point."""
