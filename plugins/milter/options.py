"""Options of `milter`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.sdk import Duration, EndpointOption, PluginOptions, Size
from plugins.milter.macros import MacroOptions


class MilterOptions(PluginOptions):
    """Options of `milter`: one milter. Several are several entries."""

    connect: EndpointOption = Field(description="Where it listens: `unix:/path`, `host:port` or `inet:port@host`.")
    name: str = Field("", max_length=64, description="Its name in records and metrics; by default its address.")
    protocol: Literal[2, 3, 4, 6] = Field(6, description="Highest version of the protocol to offer.")
    connect_timeout: Duration = Field(30.0, gt=0, description="Time to connect and to agree on options.")
    command_timeout: Duration = Field(30.0, gt=0, description="Time for an answer up to `data`.")
    content_timeout: Duration = Field(300.0, gt=0, description="Time for an answer to the message.")
    reuse: bool = Field(True, description="Keep connections for the next session, with milters that can do that.")
    idle: Duration = Field(30.0, gt=0, description="How long a connection waits for the next session.")
    edits: int = Field(1000, ge=0, le=100_000, description="Most changes to one message, pieces of a body not counted.")
    body_size: Size = Field(50 << 20, description="Largest body that it may put in place of another.")
    macros: MacroOptions = Field(
        MacroOptions.model_validate({}), description="Macros it is told, by stage, and fixed values: below."
    )
