"""Milters written with pymilter, for tests: the same classes run behind a socket and inside Gatepost.

Every callback is written to the file that ``MILTER_RECORD`` names, with its arguments, one JSON list a line; if that
is a directory, each class has a file there. What a class does can depend on the message: a recipient such as
``reject.data@...`` asks for a return code at a callback.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import Milter

CODES = {
    "continue": Milter.CONTINUE,
    "accept": Milter.ACCEPT,
    "reject": Milter.REJECT,
    "tempfail": Milter.TEMPFAIL,
    "discard": Milter.DISCARD,
    "skip": Milter.SKIP,
}
MACROS = (
    "j {daemon_name} {daemon_addr} {daemon_port} v _ {client_addr} {client_name} {client_ptr} {client_port} "
    "{tls_version} {cipher} {cipher_bits} i {mail_addr} {mail_host} {mail_mailer} {rcpt_addr} {rcpt_host} "
    "{rcpt_mailer} {auth_type} {no}"
).split()


def plain(value: Any) -> Any:
    """Arguments as JSON has them: octets marked as such."""
    if isinstance(value, bytes):
        return {"bytes": value.decode("latin-1")}
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return list(map(plain, value)) if isinstance(value, (tuple, list)) else value


class Recording(Milter.Base):
    """Writes down what it is called with. Subclasses override `answer`."""

    def __init__(self) -> None:
        self.number = Milter.uniqueID()

    def note(self, callback: str, *arguments: Any) -> None:
        path = Path(os.environ["MILTER_RECORD"])
        with (path / type(self).__name__ if path.is_dir() else path).open("a") as file:
            file.write(json.dumps([callback, *map(plain, arguments)]) + "\n")

    def told(self, callback: str, *arguments: Any) -> int:
        self.note(callback, *arguments)
        return self.answer(callback, *arguments)

    def answer(self, callback: str, *arguments: Any) -> int:
        return Milter.CONTINUE

    def connect(self, hostname: str, family: int, hostaddr: Any) -> int:
        return self.told("connect", hostname, socket.AddressFamily(family).name, hostaddr)

    def hello(self, hostname: str) -> int:
        return self.told("hello", hostname)

    def envfrom(self, sender: str, *parameters: str) -> int:
        return self.told("envfrom", sender, *parameters)

    def envrcpt(self, recipient: str, *parameters: str) -> int:
        return self.told("envrcpt", recipient, *parameters)

    def data(self) -> int:
        return self.told("data")

    def header(self, name: str, value: str) -> int:
        return self.told("header", name, value)

    def eoh(self) -> int:
        return self.told("eoh")

    def body(self, chunk: bytes) -> int:
        return self.told("body", len(chunk), chunk[:20], chunk[-20:])

    def eom(self) -> int:
        return self.told("eom")

    def abort(self) -> int:
        return self.told("abort")

    def close(self) -> int:
        return self.told("close")


class Obedient(Recording):
    """Returns what the message asks for: HELO names, senders and recipients such as ``reject.envrcpt@example.org``."""

    asked: dict[str, str] = {}

    def answer(self, callback: str, *arguments: Any) -> int:
        if callback in ("connect", "envfrom"):
            self.asked = {}
        for argument in arguments if callback in ("hello", "envfrom", "envrcpt", "header") else ():
            word, _, where = str(argument).strip("<>").partition("@")[0].partition(".")
            if word in CODES and where:
                self.asked[where.partition(".")[0]] = word
        word = self.asked.get(callback, "")
        if callback in ("envfrom", "envrcpt", "header") and word:
            # These come many times: only the one that asks is answered so.
            if not any(str(a).strip("<>").startswith(f"{word}.{callback}") for a in arguments):
                word = ""
        if word == "reject" and "reply" in self.asked:
            self.setreply("554", "5.7.9", "not this one")
        return CODES.get(word, Milter.CONTINUE)


class Editing(Recording):
    """Makes every edit there is."""

    def eom(self) -> int:
        self.note("eom", self.getsymval("i") is not None)
        self.addheader("X-Last", "last")
        self.addheader("X-First", "first", 0)
        self.addheader("X-Second", "second", 1)
        self.addheader("X-Folded", "one\n\ttwo")
        self.chgheader("Subject", 1, "changed")
        self.chgheader("X-Twice", 2, "second of two")
        self.chgheader("X-Gone", 1, None)
        self.chgheader("X-Gone-Too", 1, "")
        self.chgheader("X-New", 1, "was not there")
        self.chgheader("X-Twice", 5, "beyond")
        self.chgfrom("<changed@sender.example>")
        self.addrcpt("<added@example.org>")
        self.delrcpt("<gone@example.org>")
        self.replacebody(b"replaced\r\n")
        self.replacebody(b"in two\r\n")
        self.progress()
        return Milter.CONTINUE


class Deleting(Recording):
    """Deletes and changes one after another, where numbers move."""

    def eom(self) -> int:
        self.note("eom")
        self.chgheader("X-Many", 1, "")
        self.chgheader("X-Many", 1, "first of the rest")
        self.chgheader("X-Many", 2, "")
        self.addheader("X-Many", "at the end")
        self.chgheader("X-Many", 2, "second now")
        return Milter.CONTINUE


class Quarantining(Recording):
    def eom(self) -> int:
        self.note("eom")
        self.addheader("X-Odd", "yes")
        self.quarantine("it is odd")
        return Milter.CONTINUE


class Closed(Recording):
    """Refuses a client at once, if it is 127.0.0.2."""

    def connect(self, hostname: str, family: int, hostaddr: Any) -> int:
        self.note("connect", hostaddr[0])
        return Milter.REJECT if hostaddr[0] == "127.0.0.2" else Milter.CONTINUE


class Sparing(Recording):
    """Declines some callbacks and answers of others, and wants header values as octets."""

    @Milter.noreply
    def connect(self, hostname: str, family: int, hostaddr: Any) -> int:
        self.note("connect", hostname)
        return Milter.CONTINUE

    @Milter.nocallback
    def hello(self, hostname: str) -> int:
        self.note("hello", hostname)
        return Milter.CONTINUE

    @Milter.noreply
    @Milter.decode("bytes")
    def envfrom(self, sender: Any, *parameters: Any) -> int:
        self.note("envfrom", sender, *parameters)
        return Milter.CONTINUE

    @Milter.nocallback
    def data(self) -> int:
        return Milter.CONTINUE

    @Milter.noreply
    @Milter.decode("bytes")
    def header(self, name: str, value: Any) -> int:
        self.note("header", name, value)
        return Milter.CONTINUE

    @Milter.nocallback
    def eoh(self) -> int:
        return Milter.CONTINUE

    @Milter.noreply
    def body(self, chunk: bytes) -> int:
        self.note("body", len(chunk))
        return Milter.CONTINUE

    def eom(self) -> int:
        self.note("eom")
        self.addheader("X-Sparing", "yes")
        return Milter.CONTINUE


@Milter.header_leading_space
class Spaced(Recording):
    """Wants the white space before header values, and sends its own."""

    def eom(self) -> int:
        self.note("eom")
        self.addheader("X-Spaced", "  two")
        self.addheader("X-Close", "none")
        return Milter.CONTINUE


class Curious(Recording):
    """Asks for every macro at every callback."""

    def answer(self, callback: str, *arguments: Any) -> int:
        if callback not in ("abort", "close"):
            self.note("macros", callback, {n: v for n in MACROS if (v := self.getsymval(n)) is not None})
        return Milter.CONTINUE


class Choosy(Recording):
    """Names the macros that it wants."""

    @Milter.symlist("{rcpt_addr}", "{client_addr}")
    def envrcpt(self, recipient: str, *parameters: str) -> int:
        values = {n: v for n in MACROS if (v := self.getsymval(n)) is not None}
        self.note("macros", "envrcpt", values.get("{rcpt_addr}"), values.get("{client_addr}"))
        return Milter.CONTINUE


class Replying(Recording):
    """Refuses with words of its own, as the recipient asks."""

    def envrcpt(self, recipient: str, *parameters: str) -> int:
        self.note("envrcpt", recipient)
        word = recipient.strip("<>").partition("@")[0]
        if word == "plain":
            self.setreply("550", None, "no status")
        elif word == "status":
            self.setreply("550", "5.7.13", "a status")
        elif word == "lines":
            self.setreply("550", "5.7.13", "line one", "line two", "line three")
        elif word == "percent":
            self.setreply("550", "5.7.13", "100%% sure")
        elif word == "later":
            self.setreply("450", "4.7.13", "later")
            return Milter.TEMPFAIL
        elif word == "contrary":
            self.setreply("450", "4.7.13", "later")
            return Milter.REJECT
        elif word == "temporary":
            return Milter.TEMPFAIL
        elif word == "closing":
            self.setreply("421", "4.7.0", "closing")
            return Milter.TEMPFAIL
        elif word != "refused":
            return Milter.CONTINUE
        return Milter.REJECT


class Troubled(Milter.Base):
    """Is in the trouble that the file ``MILTER_TROUBLE`` tells: a callback and a word, or nothing."""

    def trouble(self, callback: str) -> Any:
        def told() -> str:
            where, _, word = Path(os.environ["MILTER_TROUBLE"]).read_text().partition(" ")
            return word if where == callback else ""

        match told():
            case "raise":
                raise ValueError("the milter's own trouble")
            case "garbage":
                return "garbage"
            case "exit":
                raise SystemExit(1)
            case "hang":
                while told() == "hang":
                    time.sleep(0.01)  # noqa: TID251 - a milter may block
            case "slow":
                time.sleep(0.2)  # noqa: TID251 - a milter may block
            case "change":
                self.addheader("X-Half", "done")
                raise ValueError("in the middle of changes")
            case "flood":
                for number in range(1_000_000):
                    self.addheader("X-Flood", str(number))
        return Milter.CONTINUE

    def connect(self, hostname: str, family: int, hostaddr: Any) -> Any:
        return self.trouble("connect")

    def hello(self, hostname: str) -> Any:
        return self.trouble("hello")

    def envfrom(self, sender: str, *parameters: str) -> Any:
        return self.trouble("envfrom")

    def envrcpt(self, recipient: str, *parameters: str) -> Any:
        return self.trouble("envrcpt")

    def data(self) -> Any:
        return self.trouble("data")

    def header(self, name: str, value: str) -> Any:
        return self.trouble("header")

    def eoh(self) -> Any:
        return self.trouble("eoh")

    def body(self, chunk: bytes) -> Any:
        return self.trouble("body")

    def eom(self) -> Any:
        return self.trouble("eom")


class Deciding(Milter.Base):
    """Does with each message what its field ``X-Act-DOMAIN`` says, DOMAIN being the first label of a recipient's."""

    def __init__(self) -> None:
        self.group = ""
        self.act = ""

    def envfrom(self, sender: str, *parameters: str) -> int:
        self.group = self.act = ""
        return Milter.CONTINUE

    def envrcpt(self, recipient: str, *parameters: str) -> int:
        self.group = self.group or recipient.rpartition("@")[2].partition(".")[0]
        return Milter.CONTINUE

    def header(self, name: str, value: str) -> int:
        if name.lower() == f"x-act-{self.group}":
            self.act = value.strip()
        return Milter.CONTINUE

    def eom(self) -> int:
        match self.act:
            case "header":
                self.addheader("X-Group", self.group)
            case "body":
                self.replacebody(f"a body for {self.group}\r\n".encode())
            case "quarantine":
                self.addheader("X-Group", self.group)
                self.quarantine("odd")
            case "reject":
                self.setreply("550", "5.7.1", "no")
                return Milter.REJECT
            case "tempfail":
                self.setreply("451", "4.7.1", "later")
                return Milter.TEMPFAIL
            case "discard":
                return Milter.DISCARD
        return Milter.CONTINUE
