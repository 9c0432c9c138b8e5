"""An SMTP client for tests: commands in, replies out, synchronous, and as rude as a test wants it.

*RFCs*: 5321 section 4.2.1 (replies of several lines), 2920 (PIPELINING).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from typing import Final

from gateway.mail.reply import Reply
from gateway.transport.content import stuff

__all__ = [
    "SmtpClient",
]

PATIENCE: Final = 30.0
"""Seconds after which a client that waits for a reply has failed the test."""

_LINE: Final = re.compile(rb"([2-5][0-9]{2})([ -])([^\r\n]*)\r\n\Z")
_STATUS: Final = re.compile(r"([245])\.([0-9]{1,3}\.[0-9]{1,3}) ")


class SmtpClient:
    """One connection to 127.0.0.1:`port`. `first` is sent at once; `greeting` is what the server says first."""

    def __init__(self, port: int, first: bytes = b"") -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._in = self._sock.makefile("rb")
        self._greeted = False
        self.heard: list[Reply] = []
        """All replies so far."""
        if first:
            self.send(first)
        self.greeting = self.reply()

    def send(self, octets: bytes) -> None:
        """Send these as they are. Raises ConnectionError when the server has hung up."""
        self._sock.sendall(octets)

    def reply(self) -> Reply:
        """The next reply; line feeds part the lines of its text.

        Raises ConnectionError when the server hangs up without one, and ValueError for what is no reply.
        """
        code, detail, lines = b"", "", []
        while True:
            line = self._in.readline(1 << 16)
            if not line:
                raise ConnectionResetError("the server has hung up")
            match = _LINE.match(line)
            if not match or (code and match[1] != code):
                raise ValueError(f"no reply: {line!r}")
            code = match[1]
            text = match[3].decode("ascii")
            if status := _STATUS.match(text):
                detail, text = status[2], text[status.end() :]
            lines.append(text)
            if match[2] == b" ":
                self.heard.append(Reply(int(code), detail, "\n".join(lines)))
                return self.heard[-1]

    def say(self, command: str | bytes) -> Reply:
        """Send one command and give its reply."""
        return self.say_all(command)[0]

    def say_all(self, *commands: str | bytes) -> list[Reply]:
        """Send these commands in one write, and give as many replies."""
        lines = [command.encode() if isinstance(command, str) else command for command in commands]
        self.send(b"".join(line + b"\r\n" for line in lines))
        return [self.reply() for _ in lines]

    def hello(self, name: str = "client.example") -> Reply:
        """EHLO. Its reply has a line for each extension."""
        self._greeted = True
        return self.say(f"EHLO {name}")

    def message(
        self,
        content: bytes,
        *,
        sender: str = "ben@sender.example",
        recipients: Sequence[str] = ("anna@example.org",),
    ) -> Reply:
        """A whole transaction, after EHLO if that was not said; gives the reply that settled it.

        That is the one to the content, or to whatever was refused before it: EHLO, MAIL, the last of all RCPTs, DATA.
        `content` is sent with its dots doubled and the final dot; stray line ends in it stay as they are.
        """
        if not self._greeted and not (refused := self.hello()).positive:
            return refused
        unicode = "" if f"{sender}{''.join(recipients)}".isascii() else " SMTPUTF8"
        body = "" if content.isascii() else " BODY=8BITMIME"
        if not (refused := self.say(f"MAIL FROM:<{sender}>{body}{unicode}")).positive:
            return refused
        answers = [self.say(f"RCPT TO:<{recipient}>") for recipient in recipients]
        if not any(answer.positive for answer in answers):
            self.say("RSET")
            return answers[-1]
        if (go_on := self.say("DATA")).code != 354:
            return go_on
        self.send(stuff(content))
        return self.reply()

    @property
    def hung_up(self) -> bool:
        """Whether the server closes the connection now, and says nothing before it does; waits for either."""
        try:
            return self._in.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        """Hang up without QUIT."""
        self._in.close()
        self._sock.close()
