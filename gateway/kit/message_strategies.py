"""Hypothesis strategies of messages, as octets: well made ones, and such as attackers and broken programs send.

`gateway.sdk.testing.make_message` makes of either what a policy is given. Hostile ones may hold bare CR and LF, which
the front door mends or refuses before a policy sees them.

*RFCs*: 5322 section 2.1.1 (line lengths), 2046 section 5.1 (multiparts).
"""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from gateway.kit.messages import Attached, Damage, MessageFactory

_NAMES: Final = ("a.pdf", "invoice.pdf.exe", "Gr\xfc\xdfe.txt", "x" * 100 + ".zip", 'a b;c"d.doc')
_TYPES: Final = ("application/octet-stream", "application/pdf", "image/png", "application/zip")
_SCRAPS: Final = (
    b"From: a@b.example\r\n",
    b"From:",
    b"Subject: =?utf-8?b?",
    b"Content-Type: multipart/mixed; boundary=b\r\n",
    b'Content-Type: multipart/alternative; boundary=""\r\n',
    b"Content-Type: message/rfc822\r\n",
    b"Content-Type: text/html; charset=\xff\r\n",
    b"Content-Transfer-Encoding: base64\r\n",
    b"Content-Transfer-Encoding: quoted-printable\r\n",
    b"Content-Disposition: attachment; filename*0*=utf-7''+2AA-\r\n",
    b"--b\r\n",
    b"--b--\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\n",
    b"\r",
    b"\0",
    b" folded\r\n",
    b": no name\r\n",
    b"QUJD==QUJD\r\n",
    b"=C3=\r\n=",
    b"\xff\xfe",
    b"x" * 1200,
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Messages with which nothing is wrong: texts, HTML, attachments, messages within, multiparts within multiparts."""
    words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)
    text = draw(st.none() | st.lists(words, max_size=4).map("\n".join))
    html = draw(st.none() | words.map(lambda word: f"<p>{word}</p>"))
    attached = st.builds(Attached, st.sampled_from(_NAMES), st.binary(max_size=60), st.sampled_from(_TYPES))
    subject = draw(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), max_size=40))
    inner = [MessageFactory()()] if draw(st.integers(0, 4)) == 4 else []
    return MessageFactory()(
        text,
        subject=subject,
        html=html,
        attachments=draw(st.lists(attached, max_size=3)),
        messages=inner,
        nested=draw(st.integers(0, 4)),
        eight_bit=draw(st.booleans()),
        utf8=draw(st.booleans()),
    )


@st.composite
def damaged_messages(draw: st.DrawFn) -> bytes:
    """Messages with one or several kinds of `Damage`."""
    kinds = draw(st.sets(st.sampled_from(Damage), min_size=1, max_size=4))
    # Such that every kind of damage can be done to it.
    return MessageFactory()("Hello\n", html="<p>Hello</p>", attachments=[Attached("a", bytes(60))], damage=kinds)


@st.composite
def deep_messages(draw: st.DrawFn) -> bytes:
    """Multiparts in multiparts, or messages in messages, deeper than anybody means them, and perhaps never closed."""
    depth = draw(st.integers(10, 200))
    same = draw(st.booleans())
    if draw(st.booleans()):
        return b"Content-Type: message/rfc822\r\n\r\n" * depth + b"Subject: core\r\n\r\ncore\r\n"
    names = [b"b" if same else b"b%d" % number for number in range(depth)]
    begin = b"".join(b"Content-Type: multipart/mixed; boundary=%s\r\n\r\n--%s\r\n" % (name, name) for name in names)
    end = b"".join(b"\r\n--%s--\r\n" % name for name in reversed(names)) if draw(st.booleans()) else b""
    return begin + b"Content-Type: text/plain\r\n\r\ncore\r\n" + end


def hostile_messages() -> st.SearchStrategy[bytes]:
    """All that may come: damaged, deep, scraps of messages in any order, octets of any kind, nothing at all."""
    scraps = st.lists(st.sampled_from(_SCRAPS) | st.binary(max_size=8), max_size=30).map(b"".join)
    return damaged_messages() | deep_messages() | scraps | st.binary(max_size=100)
