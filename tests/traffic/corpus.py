"""The messages of a made-up day: MIME of several shapes, real signatures, and what is wrong with some of them."""

from __future__ import annotations

import base64
import functools
import hashlib
import random
from dataclasses import dataclass
from email.header import Header
from typing import Any, Final

import dkim.crypto

from tests.support.dkimkeys import KeyPair, arc_set, signed
from tests.traffic import words

MARKER: Final = "GATEPOST-STANDARD-ANTIVIRUS-TEST-FILE"
"""Stands for a virus."""
HOOKS: Final = ("limited offer for selected readers", "please wire the fee today")
"""Texts that give a message away as spam: a little, and for sure."""
SUBJECT_HOOK: Final = "Account suspended"
SELECTOR: Final = "day"
SIZE_LIMIT: Final = 1 << 20
"""Octets of the largest message that the recorded gateway takes."""


@dataclass(frozen=True)
class Content:
    """A message. `hooks` says which of `HOOKS` it holds, 0 for none; `hooked` whether its subject is `SUBJECT_HOOK`.

    `passes` are the domains whose DKIM signatures hold; `vouched` says that a mailing list sealed it (ARC), having seen
    that its author's domain was proved.
    """

    octets: bytes
    passes: tuple[str, ...] = ()
    hooks: int = 0
    hooked: bool = False
    virus: bool = False
    program: bool = False
    vouched: str = ""

    @property
    def too_big(self) -> bool:
        return len(self.octets) > SIZE_LIMIT


@dataclass(frozen=True)
class FastKey(KeyPair):
    """A key that signs in this process: a day has thousands of signatures."""

    def sign(self, data: bytes, digest: str = "sha256") -> bytes:
        signature: bytes = dkim.crypto.RSASSA_PKCS1_v1_5_sign(hashlib.new(digest, data), _numbers(self.pem))
        return signature


@functools.cache
def _numbers(pem: bytes) -> Any:
    body = b"".join(line for line in pem.splitlines() if not line.startswith(b"-----"))
    return dkim.crypto.parse_private_key(base64.b64decode(body))


def fast(key: KeyPair) -> FastKey:
    """The same RSA key, quick to sign with."""
    return FastKey(key.traditional, key.kind, key.public)


class Writer:
    """Writes messages. All signers share `key`, as customers of one provider may."""

    def __init__(self, dice: random.Random, key: FastKey) -> None:
        self._dice = dice
        self._key = key
        self._count = 0

    def write(
        self,
        author: str,
        to: str,
        *,
        hooks: int = 0,
        hooked: bool = False,
        virus: bool = False,
        program: bool = False,
        octets: int = 0,
        newsletter: str = "",
    ) -> Content:
        """A message of this author, at least so many octets long; `newsletter` is the List-Id of one."""
        dice = self._dice
        self._count += 1
        subject = SUBJECT_HOOK if hooked else words.hook(dice) if hooks else words.subject(dice)
        fields = [
            f"From: {words.name(dice).title().replace('.', ' ')} <{author}>",
            f"To: <{to}>",
            f"Subject: {Header(subject, 'utf-8').encode() if not subject.isascii() else subject}",
            f"Date: {self._date()}",
            f"Message-ID: <{self._count}.{dice.getrandbits(48):x}@{author.rpartition('@')[2]}>",
            "MIME-Version: 1.0",
        ]
        if newsletter:
            fields += [f"List-Id: <{newsletter}>", "List-Unsubscribe: <https://news.test/off>", "Precedence: bulk"]
        text = words.text(dice, dice.randint(3, 25))
        text += f"And so: {HOOKS[hooks - 1]}.\r\n" if hooks else ""
        # A text that stands there as HTML, too, would count twice.
        html = not hooks and (bool(newsletter) or dice.random() < 0.4)
        body = self._body(text, html=html, virus=virus, program=program, octets=octets)
        data = "\r\n".join(fields).encode() + b"\r\n" + body
        return Content(data, hooks=hooks, hooked=hooked, virus=virus, program=program)

    def _date(self) -> str:
        minutes, seconds = divmod(self._count, 60)
        return f"Mon, 02 Mar 2026 {minutes // 60 % 24:02}:{minutes % 60:02}:{seconds:02} +0000"

    def _body(self, text: str, *, html: bool, virus: bool, program: bool, octets: int) -> bytes:
        """Content-Type and what follows, up to three levels deep."""
        readable = _part("text/plain; charset=utf-8", text)
        if html:
            page = "<html><body>" + "".join(f"<p>{line}</p>\r\n" for line in text.split("\r\n")) + "</body></html>\r\n"
            readable = self._multipart("alternative", [readable, _part("text/html; charset=utf-8", page)])
        files: list[bytes] = []
        if virus:
            files.append(_file("notes.txt", "text/plain", f"{MARKER}\r\n".encode(), plain=True))
        if program:
            files.append(_file("invoice.exe", "application/octet-stream", b"MZ" + bytes(200)))
        if octets:
            files.append(_file("scan.bin", "application/octet-stream", self._dice.randbytes(octets * 3 // 4)))
        elif self._dice.random() < 0.1:
            rows = "".join(f"{words.name(self._dice)};{n}\r\n" for n in range(30))
            files.append(_file("table.csv", "text/csv", rows.encode()))
        return self._multipart("mixed", [readable, *files]) if files else readable

    def _multipart(self, kind: str, parts: list[bytes]) -> bytes:
        boundary = f"={self._dice.getrandbits(64):016x}="
        lines = [f'Content-Type: multipart/{kind}; boundary="{boundary}"\r\n\r\n'.encode()]
        lines += [f"--{boundary}\r\n".encode() + part for part in parts]
        return b"".join(lines) + f"--{boundary}--\r\n".encode()

    def sign(self, content: Content, domain: str) -> Content:
        """With a signature of this domain that holds."""
        octets = signed(content.octets, self._key, d=domain, s=SELECTOR)
        return _changed(content, octets, (*content.passes, domain))

    def through_list(self, content: Content, domain: str, author: str) -> Content:
        """As a mailing list passes it on: tag and footer break the author's signature, its own holds, and it seals."""
        octets = content.octets.replace(b"\r\nSubject: ", b"\r\nSubject: [talk] ", 1) + b"-- \r\nThe list.\r\n"
        octets = signed(octets, self._key, d=domain, s=SELECTOR)
        results = f"i={{i}}; {{d}}; dkim=pass header.d={author}; dmarc=pass header.from={author}"
        octets = arc_set(octets, 1, domain, self._key, selector=SELECTOR, results=results)
        return _changed(content, octets, (domain,), domain)


def _changed(content: Content, octets: bytes, passes: tuple[str, ...], vouched: str = "") -> Content:
    return Content(
        octets, passes, content.hooks, content.hooked, content.virus, content.program, vouched or content.vouched
    )


def _part(kind: str, text: str) -> bytes:
    if text.isascii():
        return f"Content-Type: {kind}\r\n\r\n{text}".encode()
    encoded = base64.encodebytes(text.encode()).replace(b"\n", b"\r\n")
    return f"Content-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode() + encoded


def _file(name: str, kind: str, data: bytes, *, plain: bool = False) -> bytes:
    head = f'Content-Type: {kind}; name="{name}"\r\nContent-Disposition: attachment; filename="{name}"\r\n'
    if plain:
        return head.encode() + b"\r\n" + data
    encoded = base64.encodebytes(data).replace(b"\n", b"\r\n")
    return head.encode() + b"Content-Transfer-Encoding: base64\r\n\r\n" + encoded
