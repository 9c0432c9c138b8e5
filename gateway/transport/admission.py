"""The AUTH command on a connection: what was offered and what was said in, what to write next out.

*Promises*: no password without TLS, unless the login allows it. What the next hop says is passed on without the
password, should it repeat it.

*RFCs*: 4954 section 4 (AUTH).
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Final

from gateway.mail.reply import Reply
from gateway.transport.events import Unauthenticated
from gateway.transport.sasl import Login, Mechanism, Misled, choose, decode_challenge

_COMMAND: Final = 510
"""A longer first response waits until it is asked for."""


class Admission:
    """One login, which may be begun again. Each step gives a line to write, or why there is none."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._mechanism: Mechanism | None = None
        self._held: bytes | None = None

    def begin(self, offered: str, *, secure: bool) -> bytes | Unauthenticated:
        """The command; `offered` is the value of AUTH in EHLO, `secure` says that there is TLS."""
        if not secure and not self._login.without_tls:
            return Unauthenticated("there is no TLS, and without it no password is sent")
        chosen = choose(self._login, offered)
        if chosen is None:
            return Unauthenticated(f"it offers none of the mechanisms {', '.join(self._login.mechanisms)}")
        name, self._mechanism = chosen
        self._held = base64.b64encode(self._mechanism.respond(b"")) if self._mechanism.begins else None
        command = f"AUTH {name}".encode()
        if self._held is not None and len(command) + len(self._held) < _COMMAND:
            command, self._held = command + b" " + self._held, None
        return command + b"\r\n"

    def challenge(self, line: bytes) -> bytes | Unauthenticated:
        """The response to a reply 334 with this text."""
        assert self._mechanism is not None
        try:
            challenge = decode_challenge(line)
            if self._held is not None and not challenge:
                response, self._held = self._held, None
            else:
                response = base64.b64encode(self._mechanism.respond(challenge))
        except Misled as error:
            return Unauthenticated(str(error))
        return response + b"\r\n"

    def succeed(self) -> Unauthenticated | None:
        """It was a success, says the next hop; None when that can be believed."""
        assert self._mechanism is not None
        try:
            self._mechanism.check()
        except Misled as error:
            return Unauthenticated(str(error))
        return None

    def refuse(self, reply: Reply) -> Unauthenticated:
        """It was none."""
        text = reply.text
        for secret in (self._login.password, base64.b64encode(self._login.password.encode()).decode()):
            text = text.replace(secret, "[password]")
        reply = replace(reply, text=text)
        return Unauthenticated(str(reply), reply)
