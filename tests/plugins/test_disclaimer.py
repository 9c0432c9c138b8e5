"""Disclaimers: where they go, in whose charset and encoding, and what is left alone."""

from __future__ import annotations

import asyncio
import base64
import email
import random
import re
from email import policy
from email.message import EmailMessage
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest

from gateway.sdk import Action, AddHeader, Disclaimer, Message, ReplaceBody
from gateway.sdk.testing import Bench, make_message, make_session, make_transaction
from plugins.content.patched import Patch, PatchedBody

TEXT = "Confidential. Not for you?\nDelete it."
UMLAUTS = "Vertraulich — für Sie?\nGrüße aus Köln."


def crlf(octets: bytes) -> bytes:
    return octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def found(content: bytes | Message, **options) -> Disclaimer:
    message = content if isinstance(content, Message) else make_message(crlf(content))
    transaction = make_transaction(
        options.pop("session", None),
        sender=options.pop("sender", "a@b.test"),
        recipients=options.pop("to", ["c@d.test"]),
    )
    options = {"text": TEXT, **options}
    finding = Bench().find("disclaimer", options, message=message, transaction=transaction)
    assert isinstance(finding, Disclaimer)
    return finding


def octets(content: bytes | Message, finding: Disclaimer) -> bytes:
    message = content if isinstance(content, Message) else make_message(crlf(content))
    edited = message.edited(finding.edits)
    out = asyncio.run(edited.octets(1 << 30))
    assert len(out) == edited.content.size
    assert edited.content.eight_bit or out.isascii()
    return out


def read(out: bytes) -> EmailMessage:
    """The message as Python's email package reads it, which must find nothing wrong with it."""
    parsed = email.message_from_bytes(out, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    for part in parsed.walk():
        assert not part.defects, (part.defects, out)
    assert b"\n" not in out.replace(b"\r\n", b"")
    assert all(len(line) <= 998 for line in out.split(b"\r\n"))
    return parsed


def shown(part: EmailMessage) -> str:
    """The text of a part."""
    return str(part.get_content()).replace("\r\n", "\n")


def added(content: bytes | Message, **options) -> EmailMessage:
    finding = found(content, **options)
    assert finding.state == "added", finding
    return read(octets(content, finding))


def plain(body: str, *, cte: str | None = None, charset: str = "utf-8", subtype: str = "plain") -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@b.test", "c@d.test", "x"
    message.set_content(body, subtype=subtype, charset=charset, **({"cte": cte} if cte else {}))
    return bytes(message)


@pytest.mark.parametrize("cte", ["7bit", "8bit", "quoted-printable", "base64"])
@pytest.mark.parametrize("text", [TEXT, UMLAUTS])
@pytest.mark.parametrize("position", ["top", "bottom"])
def test_a_text_is_added_to_plain_text_of_every_encoding(cte, text, position):
    body = "Hello = there,\n\nregards\n" if cte == "7bit" else "Grüße = there,\n\nregards\n"
    got = shown(added(plain(body, cte=cte), text=text, position=position))
    expected = f"{text}\n\n{body}" if position == "top" else f"{body}\n{text}\n"
    assert got == expected


@pytest.mark.parametrize("charset", ["us-ascii", "iso-8859-1", "windows-1252", "koi8-r", "gb2312"])
def test_a_text_with_letters_that_a_charset_lacks_makes_the_part_utf_8(charset):
    parsed = added(plain("Hello.\n", charset=charset), text=UMLAUTS)
    assert shown(parsed) == f"Hello.\n\n{UMLAUTS}\n"
    if charset != "windows-1252":
        assert parsed.get_content_charset() == "utf-8"


def test_a_text_that_fits_leaves_the_header_section_as_it_is():
    content = plain("Gr\u00fc\u00dfe.\n", charset="iso-8859-1", cte="quoted-printable")
    out = octets(content, found(content, text="F\u00fcr Sie"))
    assert b'charset="iso-8859-1"' in out and b"F=FCr Sie" in out
    assert [type(e) for e in found(content, text="F\u00fcr Sie").edits] == [ReplaceBody, AddHeader]


def test_a_message_without_fields_about_mime_is_given_them_only_where_it_must():
    content = b"From: a@b.test\r\nSubject: x\r\n\r\nHello\r\n"
    assert shown(added(content)) == f"Hello\n\n{TEXT}\n"
    assert added(content)["mime-version"] is None
    parsed = added(content, text=UMLAUTS)
    assert parsed["mime-version"] == "1.0" and shown(parsed) == f"Hello\n\n{UMLAUTS}\n"


def test_text_that_is_not_in_the_charset_it_names_is_kept_and_the_added_one_made_ascii():
    content = b"Content-Type: text/plain; charset=us-ascii\r\n\r\nGr\xfc\xdfe\r\n"
    out = octets(content, found(content, text=UMLAUTS))
    assert out.endswith(b"Gr\xfc\xdfe\r\n\r\nVertraulich ? fur Sie?\r\nGru?e aus Koln.\r\n")


def alternative(*, signed: bool = False) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@b.test", "c@d.test", "x"
    message.set_content("Hello\n")
    message.add_alternative("<html><body class=x>\n<p>Hello</p></body></html>\n", subtype="html")
    return message


@pytest.mark.parametrize("position", ["top", "bottom"])
def test_both_variants_of_an_alternative_get_it(position):
    finding = found(bytes(alternative()), position=position)
    assert finding.parts == ("text/plain", "text/html")
    parsed = added(bytes(alternative()), position=position)
    text, markup = (shown(part) for part in parsed.iter_parts())
    assert TEXT in text
    html = "<div>Confidential. Not for you?<br>\nDelete it.</div>"
    if position == "bottom":
        assert markup == f"<html><body class=x>\n<p>Hello</p>\n{html}\n</body></html>\n"
    else:
        assert markup == f"<html><body class=x>\n{html}\n\n<p>Hello</p></body></html>\n"


def test_html_of_its_own_is_used_and_letters_become_references():
    content = plain("<p>Hello</p>\n", subtype="html", charset="us-ascii")
    parsed = added(content, html="<hr><b>für Sie — ok</b>")
    assert shown(parsed) == "<p>Hello</p>\n\n<hr><b>f&#252;r Sie &#8212; ok</b>\n"
    assert shown(added(content, text="1 < 2 & 3")).endswith("<div>1 &lt; 2 &amp; 3</div>\n")


def test_the_first_text_of_a_message_with_attachments_gets_it_and_attachments_do_not():
    message = alternative()
    message.add_attachment("a note\n", filename="note.txt")
    message.add_attachment(b"\x00\x01" * 500, maintype="application", subtype="octet-stream", filename="x.bin")
    parsed = added(bytes(message))
    bodies, note, binary = parsed.iter_parts()
    assert all("Confidential" in shown(part) for part in bodies.iter_parts())
    assert shown(note) == "a note\n" and binary.get_content() == b"\x00\x01" * 500


def test_the_root_of_related_parts_gets_it():
    message = EmailMessage()
    message["From"] = "a@b.test"
    message.set_content("Hello\n")
    message.add_alternative("<p><img src=cid:x></p>\n", subtype="html")
    message.get_payload()[1].add_related(b"GIF89a", "image", "gif", cid="<x>")
    parsed = added(bytes(message))
    assert [p.get_content_type() for p in parsed.walk()] == [p.get_content_type() for p in message.walk()]
    assert sum("Confidential" in shown(p) for p in parsed.walk() if p.get_content_maintype() == "text") == 2


def test_a_text_part_that_is_an_attachment_is_none():
    message = MIMEMultipart("mixed")
    note = MIMEText("note")
    note.add_header("Content-Disposition", "attachment", filename="n.txt")
    message.attach(note)
    message.attach(MIMEApplication(b"1"))
    assert found(bytes(message)) == Disclaimer("no-text")
    message.attach(MIMEText("the real text\n"))
    assert "Confidential" in shown(list(added(bytes(message)).iter_parts())[2])


def signed(kind: str) -> bytes:
    inner = MIMEText("Hello\n")
    message = MIMEMultipart(kind, protocol="application/pgp-signature", micalg="pgp-sha256")
    message.attach(inner)
    message.attach(MIMEApplication(b"-----BEGIN PGP SIGNATURE-----", "pgp-signature"))
    return bytes(message)


def forwarded(content: bytes) -> bytes:
    message = MIMEMultipart("mixed")
    message.attach(email.message_from_bytes(content))
    message.attach(MIMEText("-- \nthe list\n"))
    return bytes(message)


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (signed("signed"), "signed"),
        (forwarded(signed("signed")), "signed"),
        (signed("encrypted"), "encrypted"),
        (b"Content-Type: application/pkcs7-mime; smime-type=signed-data\r\n\r\nMIIB\r\n", "encrypted"),
        (plain("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nHello\n"), "signed"),
        (plain("-----BEGIN PGP MESSAGE-----\n\nhQEM\n", cte="base64"), "encrypted"),
        (b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\n\r\ntext\r\n--b--\r\n", "report"),
        (b"Content-Type: application/pdf\r\n\r\n%PDF\r\n", "no-text"),
        (b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\ntext\r\n", "no-text"),
        (b"Content-Type: text/plain; charset=utf-16le\r\n\r\na\0b\0\r\n", "unreadable"),
        (b"Content-Type: text/plain; charset=no-such\r\n\r\nab\r\n", "unreadable"),
        (b"Content-Transfer-Encoding: x-own\r\n\r\nab\r\n", "unreadable"),
    ],
)
def test_what_must_not_be_changed_is_left_alone_and_the_finding_says_why(content, state):
    finding = found(content)
    assert finding == Disclaimer(state)
    assert Bench().judge("disclaimer", {"text": TEXT}, findings=[finding]).edits == ()


def test_a_message_that_has_it_does_not_get_it_again_and_gets_another_one():
    content = octets(plain("Hello\n"), found(plain("Hello\n")))
    assert found(content) == Disclaimer("there-already")
    assert found(content, text="another").state == "added"
    again = octets(content, found(content, text="another"))
    assert found(again) == Disclaimer("there-already")
    assert found(content, mark="X-Other").state == "added"


def test_it_is_for_the_senders_recipients_and_clients_that_the_options_name():
    content = plain("Hello\n")
    inside, outside = "a@in.example", "b@out.test"

    def state(**options) -> str:
        return found(content, **options).state

    assert state(senders=["in.example"], sender=inside) == "added"
    assert state(senders=["in.example"], sender="a@sub.in.example") == "not-for"
    assert state(senders=[".in.example"], sender="a@sub.in.example") == "added"
    assert state(senders=["in.example"], sender=outside) == "not-for"
    assert state(senders=["in.example"], sender="") == "not-for"
    assert state(recipients=["out.test"], to=[inside, outside]) == "added"
    assert state(recipients=["other.test"], to=[inside, outside]) == "not-for"
    assert state(inside=["in.example"], to=[inside]) == "not-for"
    assert state(inside=["in.example"], to=[inside, outside]) == "added"
    assert state(clients=["192.0.2.0/24"], session=make_session("192.0.2.7")) == "added"
    assert state(clients=["192.0.2.0/24"], session=make_session("198.51.100.7")) == "not-for"
    assert state(trusted=True, session=make_session(trusted=True)) == "added"
    assert state(trusted=True) == "not-for"
    assert state(trusted=False) == "added"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"text": " "}, "empty"),
        ({"text": "a\x00"}, "printable"),
        ({"text": "ü" * 500}, "990 octets"),
        ({"text": "a", "senders": ["a@b.test"]}, "no domain"),
        ({"text": "a", "mark": "X Y"}, "should match"),
    ],
)
def test_wrong_options_say_what_is_wrong(options, problem):
    with pytest.raises(ValueError, match=problem):
        found(plain("x\n"), **options)


def large(cte: str, *, charset: str = "utf-8", lines: int = 60_000) -> tuple[bytes, str]:
    text = "".join(f"line {n} of a long text: ä = ß\n" for n in range(lines))
    return plain(text, cte=cte, charset=charset), text


@pytest.mark.parametrize("cte", ["8bit", "quoted-printable", "base64"])
@pytest.mark.parametrize("position", ["top", "bottom"])
def test_a_large_text_is_added_to_at_one_end_only(cte, position):
    content, text = large(cte)
    finding = found(content, position=position, text=UMLAUTS)
    (edit,) = [e for e in finding.edits if isinstance(e, ReplaceBody)]
    assert sum(len(patch.octets) for patch in edit.body._patches) < 10_000
    parsed = read(octets(content, finding))
    expected = f"{UMLAUTS}\n\n{text}" if position == "top" else f"{text}\n{UMLAUTS}"
    # Whole groups of base64 may need an empty line or two.
    assert re.sub("\n{2,}", "\n\n", shown(parsed)).strip() == expected.strip()


def test_a_large_base64_text_whose_lines_are_odd_is_left_alone():
    body = base64.b64encode(b"some text " * 200_000)
    lines = b"\r\n".join(body[at : at + 77] for at in range(0, len(body), 77))
    content = b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n" + lines + b"\r\n"
    assert found(content) == Disclaimer("unreadable")
    assert found(content, position="top").state == "added"


def test_a_body_with_patches_is_the_same_in_blocks_of_any_size():
    chance = random.Random(5)
    for _ in range(300):
        body = bytes(chance.choices(b"abcdef\r\n", k=chance.randrange(60)))
        cuts = sorted(chance.sample(range(len(body) + 1), k=min((len(body) + 1) // 2 * 2, 2 * chance.randrange(4))))
        patches = [
            Patch(a, b, bytes(chance.choices(b"XYZ", k=chance.randrange(4))))
            for a, b in zip(cuts[::2], cuts[1::2], strict=True)
        ]
        expected, at = b"", 0
        for patch in patches:
            expected += body[at : patch.start] + patch.octets
            at = patch.end
        expected += body[at:]
        made = PatchedBody(Blocks(b"HEAD" + body, chance.randrange(1, 9)), 4, patches)
        assert (asyncio.run(collect(made)), made.size) == (expected, len(expected))


class Blocks:
    """Content that comes in blocks of this size."""

    eight_bit = False

    def __init__(self, octets: bytes, block: int) -> None:
        self.octets, self.block, self.size = octets, block, len(octets)

    async def blocks(self):
        for at in range(0, self.size, self.block):
            yield self.octets[at : at + self.block]


async def collect(content) -> bytes:
    return b"".join([block async for block in content.blocks()])


def test_the_policy_makes_the_edits():
    finding = found(plain("Hello\n"))
    verdict = Bench().judge("disclaimer", {"text": TEXT}, findings=[finding])
    assert verdict.action is Action.PROCEED and verdict.edits == finding.edits
    assert finding.to_json()["edits"][0]["edit"] == "ReplaceBody", "and the record has no octets of a body"


@pytest.mark.parametrize("kind", ['text/plain; a="' + "x" * 600 + '";\n b="' + "y" * 600 + '"', "text/plain; a=\x01"])
@pytest.mark.parametrize("inside", [False, True])
def test_whatever_a_content_type_says_it_can_be_written_anew(kind, inside):
    part = f"Content-Type: {kind}\n\nhello\n"
    whole = f"Content-Type: multipart/mixed; boundary=b\n\n--b\n{part}--b--\n" if inside else part
    content = f"From: a@b.test\nMIME-Version: 1.0\n{whole}".encode()
    finding = found(content, text=UMLAUTS)
    assert finding.state == "added"
    out = octets(content, finding)
    assert all(len(line) <= 998 for line in out.split(b"\r\n"))
    texts = [p for p in email.message_from_bytes(out, policy=policy.default).walk() if not p.is_multipart()]
    assert [(p.get_content_type(), p.get_content_charset()) for p in texts] == [("text/plain", "utf-8")]
