"""What rspamd answers to ``/checkv2``: JSON, checked. Fields that are of no use here are not read.

Source: https://rspamd.com/doc/developers/protocol.html
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

REPLY_OCTETS: Final = 1 << 20
_OPTIONS: Final = 10
_SYMBOL_LENGTH: Final = 300
_SYMBOLS: Final = 1000


class RspamdError(OSError):
    """rspamd answered nonsense, an error, or nothing."""


def _no_table(value: Any) -> Any:
    """An empty Lua table is a list as well as a map, and is written as a list."""
    return {} if value == [] else value


def _one_or_many(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _no_map(value: Any) -> Any:
    return [] if value == {} else value


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class Symbol(_Part):
    """A rule that matched, what it is worth here, and what it has to say."""

    score: float = 0.0
    options: Annotated[list[str], BeforeValidator(_no_map)] = []


class Added(_Part):
    """A field to add: `order` from the top, or, negative, from the end; None for the end."""

    value: str
    order: int | None = Field(None, ge=-(10**6), le=10**6)
    index: int | None = Field(None, ge=-(10**6), le=10**6)

    @property
    def place(self) -> int | None:
        return self.index if self.order is None else self.order


def _added(value: Any) -> Any:
    return [{"value": item} if isinstance(item, str) else item for item in _one_or_many(value)]


_Place = Annotated[int, Field(ge=-(10**6), le=10**6)]
_Values = Annotated[list[Added], BeforeValidator(_added)]
_Places = Annotated[list[_Place], BeforeValidator(_one_or_many)]
_Texts = Annotated[list[str], BeforeValidator(_no_map)]


class MilterBlock(_Part):
    """The changes that rspamd asks for, in the words of its milter interface."""

    add_headers: Annotated[dict[str, _Values], BeforeValidator(_no_table)] = {}
    remove_headers: Annotated[dict[str, _Places], BeforeValidator(_no_table)] = {}
    change_from: str | None = None
    add_rcpt: _Texts = []
    del_rcpt: _Texts = []
    reject: str = ""
    no_action: bool = False
    spam_header: str | dict[str, str] | None = None


class Messages(_Part):
    """What rspamd would have a client told."""

    smtp_message: str = ""


class Reply(_Part):
    """rspamd's answer for one message."""

    action: str = Field(min_length=1, max_length=100)
    score: float
    required_score: float | None = None
    symbols: Annotated[dict[str, Symbol], BeforeValidator(_no_table)] = {}
    messages: Annotated[Messages, BeforeValidator(_no_table)] = Messages()
    milter: Annotated[MilterBlock, BeforeValidator(_no_table)] = MilterBlock()
    subject: str = ""
    signatures: Annotated[list[str], BeforeValidator(_one_or_many)] = Field([], alias="dkim-signature")

    def rules(self) -> tuple[str, ...]:
        """The symbols as text, the weightiest first: ``NAME(1.50)[option, option]``."""
        found = sorted(self.symbols.items(), key=lambda item: (-abs(item[1].score), item[0]))
        return tuple(_rule(name, symbol) for name, symbol in found[:_SYMBOLS])


def _rule(name: str, symbol: Symbol) -> str:
    options = f"[{', '.join(symbol.options[:_OPTIONS])}]" if symbol.options else ""
    return f"{name}({symbol.score:.2f}){options}"[:_SYMBOL_LENGTH]


def read_reply(octets: bytes) -> Reply:
    """The answer out of a response's body. Raises RspamdError, in one line, for what is none."""
    # Options of symbols repeat octets of the message, whatever they are.
    text = octets.decode("utf-8", "replace")
    try:
        return Reply.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise RspamdError(f"rspamd answered garbage: {where!r}: {first['msg'][:100]}") from None
