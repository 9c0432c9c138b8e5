"""Command lines: bytes in, a parsed command or the reply to bad syntax out. No sockets here.

*RFCs*: 5321 section 4.1 (grammar), 1870 (SIZE), 6152 (BODY), 6531 (SMTPUTF8), 3461 (RET, ENVID, NOTIFY, ORCPT),
3030 (BDAT).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from gateway.mail.address import (
    NULL_SENDER,
    Address,
    AddressError,
    Sender,
    parse_domain,
    parse_forward_path,
    parse_reverse_path,
    split_path,
)
from gateway.mail.envelope import Body, MailParameters, Notify, Recipient, Ret
from gateway.mail.reply import Reply

HTTP_VERBS: Final = frozenset({"GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "CONNECT", "PATCH", "TRACE", "PRI"})
"""Verbs of HTTP: a browser was tricked into talking to us, and each of its lines would be a command."""

_VERB: Final = re.compile(rb"([A-Za-z0-9]{1,16})(?: +|\Z)")
_PARAMETER: Final = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9\-]{0,30})(?:=([\x21-\x3c\x3e-\x7e\u0080-\U0010ffff]{1,1000}))?\Z"
)
_XTEXT: Final = re.compile(r"(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-F]{2})+\Z")
_UTF8_XTEXT: Final = re.compile(r"[\x21-\x7e\u00a0-\U0010ffff]+\Z")
_ATOM: Final = re.compile(r"[A-Za-z0-9\-]+\Z")
_MAX_SIZE_DIGITS: Final = 20
_MAX_PARAMETERS: Final = 20
_ENVID_CHARACTERS: Final = 100
_ORCPT_CHARACTERS: Final = 500

BAD_SYNTAX: Final = Reply(500, "5.2", "bad syntax")


class CommandError(Exception):
    """The command is no good; `reply` says so to the client."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


def _bad(detail: str, text: str, code: int = 501) -> CommandError:
    return CommandError(Reply(code, detail, text))


def split_line(line: bytes, *, strict: bool) -> tuple[str, str]:
    """Verb (upper case) and argument of a command line that still has its line end.

    With `strict`, a line that does not end in CRLF is an error. Undecodable octets, NUL and stray CR are errors always.
    Raises `CommandError`.
    """
    if line.endswith(b"\r\n"):
        line = line[:-2]
    elif strict:
        raise _bad("5.2", "lines end in CRLF", 500)
    else:
        line = line[:-1]
    if b"\r" in line or b"\0" in line:
        raise CommandError(BAD_SYNTAX)
    match = _VERB.match(line)
    if not match:
        raise CommandError(BAD_SYNTAX)
    try:
        return match[1].decode("ascii").upper(), line[match.end() :].decode("utf-8").rstrip(" ")
    except UnicodeDecodeError as error:
        raise _bad("5.2", "command is not UTF-8", 500) from error


@lru_cache(maxsize=4096)
def parse_helo(argument: str) -> str:
    """The name a client gives itself: a domain or address literal, checked loosely as RFC 5321 section 4.1.4 asks.

    Many honest clients send names with underscores or no dots; control characters and spaces are refused.
    Raises `CommandError`.
    """
    if not argument or len(argument) > 255 or not argument.isprintable() or " " in argument:
        raise _bad("5.4", "name is malformed")
    if argument.startswith("["):
        try:
            parse_domain(argument)
        except AddressError as error:
            raise _bad("5.4", str(error)) from error
    return argument


def _parameters(text: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _PARAMETER.match(word)
        if not match or len(out) >= _MAX_PARAMETERS:
            raise _bad("5.4", "parameter is malformed")
        name = match[1].upper()
        if name in out:
            raise _bad("5.4", f"parameter {name} is given twice")
        out[name] = match[2] or ""
    return out


def _path(argument: str, keyword: str) -> tuple[str, dict[str, str]]:
    if argument[: len(keyword)].upper() != keyword:
        raise _bad("5.2", f"expected {keyword}<address>")
    try:
        inner, rest = split_path(argument[len(keyword) :].lstrip(" "))
    except AddressError as error:
        raise _bad("1.7" if keyword == "FROM:" else "1.3", str(error)) from error
    return inner, _parameters(rest)


def _check_ascii(path: str, smtputf8: bool) -> None:
    """RFC 6531 section 3.5: an address that is not ASCII needs the parameter, in MAIL, also for its recipients."""
    if not smtputf8 and not path.isascii():
        raise _bad("6.7", "address needs SMTPUTF8", 553)


@dataclass(frozen=True, slots=True)
class Mail:
    """MAIL FROM, parsed."""

    sender: Sender
    parameters: MailParameters


_FLAGS: Final = {False: ("SMTPUTF8",), True: ("SMTPUTF8", "REQUIRETLS")}
"""Parameters without a value, by whether REQUIRETLS is offered."""


@lru_cache(maxsize=512)
def parse_mail(argument: str, esmtp: bool, requiretls: bool = False) -> Mail:
    """Raises `CommandError`: 501 for syntax, 553 for UTF-8 unasked, 555 for a parameter that is not offered.

    `requiretls` says that REQUIRETLS is.
    """
    inner, given = _path(argument, "FROM:")
    if given and not esmtp:
        raise _bad("5.4", "parameters need EHLO", 555)
    size, body, ret, envid = 0, Body.SEVEN_BIT, None, ""
    smtputf8 = "SMTPUTF8" in given
    for name, value in given.items():
        if name == "SIZE":
            if not value.isascii() or not value.isdigit() or len(value) > _MAX_SIZE_DIGITS:
                raise _bad("5.4", "SIZE is malformed")
            size = int(value)
        elif name == "BODY":
            if value.upper() not in (Body.SEVEN_BIT, Body.EIGHT_BIT):
                raise _bad("5.4", "BODY is not one that is offered", 501 if value else 555)
            body = Body(value.upper())
        elif name in _FLAGS[requiretls]:
            if value:
                raise _bad("5.4", f"{name} takes no value")
        elif name == "RET":
            if value.upper() not in (Ret.FULL, Ret.HEADERS):
                raise _bad("5.4", "RET is malformed")
            ret = Ret(value.upper())
        elif name == "ENVID":
            if len(value) > _ENVID_CHARACTERS or not _XTEXT.match(value):
                raise _bad("5.4", "ENVID is malformed")
            envid = value
        else:
            raise _bad("5.4", f"parameter {name} is not offered", 555)
    _check_ascii(inner, smtputf8)
    try:
        sender: Sender = parse_reverse_path(inner, utf8=smtputf8) if inner else NULL_SENDER
    except AddressError as error:
        raise _bad("1.7", str(error)) from error
    return Mail(sender, MailParameters(size, body, smtputf8, ret, envid, "REQUIRETLS" in given))


def parse_rcpt(argument: str, *, esmtp: bool, smtputf8: bool) -> Recipient:
    """Raises `CommandError`: 501 for syntax, 553 for UTF-8 unasked, 555 for a parameter that is not offered."""
    inner, given = _path(argument, "TO:")
    if given and not esmtp:
        raise _bad("5.4", "parameters need EHLO", 555)
    notify: frozenset[Notify] = frozenset()
    orcpt = ""
    for name, value in given.items():
        if name == "NOTIFY":
            notify = _notify(value)
        elif name == "ORCPT":
            orcpt = _orcpt(value)
        else:
            raise _bad("5.4", f"parameter {name} is not offered", 555)
    _check_ascii(inner, smtputf8)
    try:
        address: Address = parse_forward_path(inner, utf8=smtputf8)
    except AddressError as error:
        raise _bad("1.3", str(error)) from error
    return Recipient(address, notify, orcpt)


def _notify(value: str) -> frozenset[Notify]:
    words = value.upper().split(",")
    try:
        out = frozenset(Notify(word) for word in words)
    except ValueError as error:
        raise _bad("5.4", "NOTIFY is malformed") from error
    if len(out) != len(words) or (Notify.NEVER in out and len(out) > 1):
        raise _bad("5.4", "NOTIFY is malformed")
    return out


def _orcpt(value: str) -> str:
    """RFC 3461 section 4.2; the ``utf-8`` address type of RFC 6533 section 3 may hold UTF-8."""
    kind, semicolon, text = value.partition(";")
    grammar = _UTF8_XTEXT if kind.lower() == "utf-8" else _XTEXT
    if not semicolon or not _ATOM.match(kind) or len(value) > _ORCPT_CHARACTERS or not grammar.match(text):
        raise _bad("5.4", "ORCPT is malformed")
    return value


@dataclass(frozen=True, slots=True)
class Bdat:
    """BDAT, parsed: how many octets follow at once, and whether they are the last (RFC 3030 section 2)."""

    octets: int
    last: bool


def parse_bdat(argument: str) -> Bdat:
    """Raises `CommandError`. The octets of a BDAT whose size cannot be read cannot be skipped: close the connection."""
    words = argument.split()
    if not words or not words[0].isascii() or not words[0].isdigit() or len(words[0]) > _MAX_SIZE_DIGITS:
        raise _bad("5.4", "BDAT size is malformed")
    if len(words) > 2 or (len(words) == 2 and words[1].upper() != "LAST"):
        raise _bad("5.4", "BDAT is malformed")
    return Bdat(int(words[0]), len(words) == 2)
