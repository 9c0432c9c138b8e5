"""What the parser makes of messages, well formed and not, and what the `mime` plugin says and decides."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from pydantic import ValidationError

from gateway.mail.envelope import MailParameters
from gateway.pipeline.recall import recall
from gateway.sdk import Action, Defect, Mime
from gateway.sdk.testing import Bench, BytesContent, make_message, make_transaction
from gateway.sdk.words import decode_words, find_charset
from plugins.content.fields import parse_value
from plugins.content.mime import MimeOptions, MimePlugin
from plugins.content.parser import Limits, Parsed, Parser
from plugins.content.reading import decoded, read_parts

HEAD = b"From: a@sender.example\r\nDate: Mon, 2 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@sender.example>\r\n"
MIME = HEAD + b"MIME-Version: 1.0\r\n"


def read(content: bytes, limits: Limits | None = None, *, utf8: bool = False, block: int = 1 << 20) -> Parsed:
    parser = Parser(limits, utf8=utf8)
    for at in range(0, len(content), block):
        parser.feed(content[at : at + block])
    return parser.finish()


def multipart(*parts: bytes, boundary: bytes = b"b", end: bytes = b"--b--\r\n", head: bytes = MIME) -> bytes:
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    return head + b"Content-Type: multipart/mixed; boundary=" + boundary + b"\r\n\r\n" + body + end


def single(field: bytes, body: bytes = b"text\r\n", *, head: bytes = MIME) -> Parsed:
    return read(head + field + b"\r\n\r\n" + body)


def text_part(encoding: bytes, body: bytes) -> Parsed:
    return single(b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: " + encoding, body)


def test_a_plain_message_is_one_part_without_defects():
    parsed = read(HEAD + b"\r\nHello\r\n")
    (part,) = parsed.parts
    assert (part.section, part.type, part.size, parsed.defects) == ("1", "text/plain", 7, ())
    assert parsed.texts[0].text == "Hello\r\n"


def test_the_tree_of_parts_has_sections_types_and_offsets():
    inner = b'Content-Type: multipart/alternative; boundary="x y"\r\n\r\n--x y\r\n\r\none\r\n'
    inner += b"--x y\r\n\r\ntwo\r\n--x y--\r\n"
    content = multipart(b"\r\nhello", inner, b"Content-Type: message/rfc822\r\n\r\nSubject: s\r\n\r\ninside")
    parsed = read(content)
    assert [(p.section, p.type, p.composite) for p in parsed.parts] == [
        ("1", "multipart/mixed", True),
        ("1.1", "text/plain", False),
        ("1.2", "multipart/alternative", True),
        ("1.2.1", "text/plain", False),
        ("1.2.2", "text/plain", False),
        ("1.3", "message/rfc822", True),
        ("1.3.1", "text/plain", False),
    ]
    assert [content[p.body : p.end] for p in parsed.parts if not p.composite] == [b"hello", b"one", b"two", b"inside"]
    assert [p.depth for p in parsed.parts] == [0, 1, 1, 2, 2, 1, 2]
    assert parsed.defects == ()


def test_it_makes_no_difference_in_what_blocks_the_octets_come():
    content = multipart(
        b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(b"x" * 200).replace(b"\n", b"\r\n"),
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\na=C3=A4 \r\n=\r\nb=",
        b"",
        b"no field\r\n--c",
    )
    whole = read(content)
    for block in range(1, 70):
        assert read(content, block=block) == whole, block


def test_the_parts_of_a_digest_are_messages():
    content = multipart(b"\r\nSubject: inner\r\n\r\nbody").replace(b"multipart/mixed", b"multipart/digest")
    assert [p.type for p in read(content).parts] == ["multipart/digest", "message/rfc822", "text/plain"]


def test_file_names_come_in_pieces_and_other_charsets():
    parsed = single(
        b"Content-Type: application/zip\r\nContent-Disposition: attachment;\r\n"
        b" filename*0*=utf-8'en'%E2%82%AC%20; filename*1=rates; filename*2*=%2Ezip"
    )
    assert parsed.parts[0].names == ("€ rates.zip",)
    assert parsed.defects == ()


def test_all_names_that_a_reader_may_show_are_kept_and_the_conflict_is_noted():
    parsed = single(b'Content-Type: application/zip; name="a.exe"\r\nContent-Disposition: attachment; filename=a.txt')
    assert parsed.parts[0].names == ("a.txt", "a.exe")
    assert parsed.parts[0].filename == "a.txt"
    assert parsed.defects == (Defect.CONFLICTING_NAMES,)


def test_a_name_with_spaces_and_parentheses_is_read_without_quotes():
    _, parameters = parse_value("attachment; filename=report (1).pdf")
    assert parameters.values == {"filename": "report (1).pdf"}
    assert parameters.bad


def test_comments_and_quoted_pairs_are_understood():
    head, parameters = parse_value(r'text/plain (a comment); charset="us-ascii" (another); x="a\"b;c"')
    assert head == "text/plain"
    assert parameters.values == {"charset": "us-ascii", "x": 'a"b;c'}
    assert not parameters.bad


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("=?utf-8?B?w6Q=?= b", "ä b"),
        ("=?iso-8859-1?q?a=E4_b?=", "aä b"),
        ("=?utf-8?q?a?= \r\n =?utf-8?q?b?=", "ab"),
        ("=?utf-8?B?w6?= =?utf-8?B?Q=?=", "\ufffd"),
        ("=?utf-8?q?=C3?= =?utf-8?q?=A4?=", "ä"),
        ("=?utf-8*en?q?a?=", "a"),
        ("=?no-such?q?a?=", "a"),
        ("=? ?q?a?= =?", "=? ?q?a?= =?"),
    ],
)
def test_encoded_words_are_decoded_as_readers_do(text, means):
    assert decode_words(text) == means


@pytest.mark.parametrize("name", ["zlib", "rot13", "idna", "punycode", "unicode_escape", "base64", "x" * 50, "", "\0"])
def test_what_is_no_charset_is_none(name):
    assert find_charset(name) == ""


@pytest.mark.parametrize(
    ("encoding", "body", "text", "defects"),
    [
        (b"base64", b"YWJj\r\nZGVm\r\n", "abcdef", ()),
        (b"base64", b"YWJj$ZGVm", "abcdef", (Defect.BASE64_GARBAGE,)),
        (b"base64", b"YWJ", "ab", (Defect.BASE64_LENGTH,)),
        (b"base64", b"YWI=YWI=", "abab", (Defect.BASE64_AFTER_PADDING,)),
        (b"base64", b"YWJj=", "abc", (Defect.BASE64_LENGTH,)),
        (b"Quoted-Printable", b"a=C3=A4=\r\nb \r\nc", "aäb\r\nc", ()),
        (b"quoted-printable", b"a=zz", "a=zz", (Defect.QP_GARBAGE,)),
        (b"x-uuencode", b"begin 644 x\r\n#86)C\r\n`\r\nend\r\n", "abc", ()),
        (b"x-uuencode", b"begin 644 x\r\n#8\x7f\x7fC\r\nend\r\n", "", (Defect.UU_GARBAGE,)),
        (b"7bit", "ä".encode(), "ä", (Defect.EIGHT_BIT_BODY,)),
        (b"8bit", "ä".encode(), "ä", ()),
        (b"8bit", b"\xe4", "\ufffd", (Defect.UNDECODABLE_TEXT,)),
        (b"rot13", b"abc", "abc", (Defect.UNKNOWN_ENCODING,)),
        (b"binary", b"a\0b", "a\0b", (Defect.BINARY_TEXT,)),
        (b"8bit", b"a\0b", "a\0b", (Defect.NUL_IN_BODY, Defect.BINARY_TEXT)),
    ],
)
def test_bodies_are_decoded_and_their_defects_noted(encoding, body, text, defects):
    parsed = text_part(encoding, body)
    assert parsed.texts[0].text == text
    assert parsed.defects == defects
    assert parsed.parts[0].size == len(b"".join(asyncio.run(pieces(encoding, body))))


async def pieces(encoding: bytes, body: bytes) -> list[bytes]:
    content = BytesContent(MIME + b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n" + body)
    parsed = await read_parts(content)
    return [piece.octets async for piece in decoded(content, parsed.parts)]


def test_parts_are_decoded_again_in_one_pass_over_a_large_content():
    large = base64.encodebytes(bytes(range(256)) * 8000).replace(b"\n", b"\r\n")
    content = BytesContent(
        multipart(b"\r\nfirst", b"Content-Transfer-Encoding: base64\r\n\r\n" + large, b"", b"\r\nlast")
    )
    assert content.size > 2 << 20

    async def run() -> tuple[list[int], dict[str, bytes], list[str]]:
        parsed = await read_parts(content)
        leaves = [part for part in parsed.parts if not part.composite]
        out: dict[str, bytes] = {}
        ended = []
        async for piece in decoded(content, leaves):
            out[piece.part.section] = out.get(piece.part.section, b"") + piece.octets
            ended += [piece.part.section] if piece.last else []
        return [part.size for part in leaves], out, ended

    sizes, out, ended = asyncio.run(run())
    assert out == {"1.1": b"first", "1.2": bytes(range(256)) * 8000, "1.3": b"", "1.4": b"last"}
    assert [len(octets) for octets in out.values()] == sizes
    assert ended == ["1.1", "1.2", "1.3", "1.4"]


@pytest.mark.parametrize(
    ("content", "defect"),
    [
        (MIME + b"Content-Type: multipart/mixed\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n", Defect.NO_BOUNDARY),
        (MIME + b'Content-Type: multipart/mixed; boundary="a&b"\r\n\r\n--a&b\r\n\r\nx\r\n--a&b--', Defect.BAD_BOUNDARY),
        (multipart(b"\r\nx", boundary=b"b" * 71, end=b"--" + b"b" * 71 + b"--"), Defect.BAD_BOUNDARY),
        (
            multipart(b"Content-Type: multipart/mixed; boundary=bb\r\n\r\n--bb\r\n\r\nx\r\n--bb--"),
            Defect.AMBIGUOUS_BOUNDARY,
        ),
        (multipart(), Defect.MISSING_START_BOUNDARY),
        (multipart(b"\r\nx", end=b""), Defect.MISSING_END_BOUNDARY),
        (multipart(b"\r\nx", end=b"--b--\r\nmore\r\n"), Defect.EPILOGUE),
        (
            multipart(b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nQQ=="),
            Defect.ENCODED_COMPOSITE,
        ),
        (MIME + b"Content-Type: message/partial; id=x; number=1\r\n\r\nx", Defect.PARTIAL_MESSAGE),
        (MIME + b"Content-Type: message/external-body; access-type=URL\r\n\r\n\r\n", Defect.EXTERNAL_BODY),
        (MIME + b"no field\r\n\r\nx", Defect.MALFORMED_HEADER),
        (MIME + b"Subject : x\r\n\r\n", Defect.SPACE_BEFORE_COLON),
        (MIME + b"Subject: \xc3\xa4\r\n\r\n", Defect.EIGHT_BIT_HEADER),
        (MIME + b"Subject: \0\r\n\r\n", Defect.NUL_IN_HEADER),
        (MIME + b"Subject: a\x1b[0m\r\n\r\n", Defect.CONTROL_IN_HEADER),
        (MIME + b"Content-Type: text/plain\r\ncontent-type: text/html\r\n\r\n", Defect.DUPLICATE_CONTENT_TYPE),
        (
            MIME + b"Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64\r\n\r\n",
            Defect.DUPLICATE_ENCODING,
        ),
        (MIME + b"Content-Disposition: inline\r\nContent-Disposition: inline\r\n\r\n", Defect.DUPLICATE_DISPOSITION),
        (MIME + MIME.splitlines(keepends=True)[-1] + b"\r\n", Defect.DUPLICATE_MIME_VERSION),
        (HEAD + b"From: b@sender.example\r\n\r\n", Defect.DUPLICATE_FROM),
        (HEAD + b"Date: now\r\n\r\n", Defect.DUPLICATE_DATE),
        (HEAD + b"Message-ID: <2@sender.example>\r\n\r\n", Defect.DUPLICATE_MESSAGE_ID),
        (HEAD + b"Subject: a\r\nSubject: b\r\n\r\n", Defect.DUPLICATE_SUBJECT),
        (HEAD + b"To: a\r\nTO: b\r\n\r\n", Defect.DUPLICATE_ADDRESS_FIELD),
        (HEAD + b"Content-Type: text/plain\r\n\r\n", Defect.MISSING_MIME_VERSION),
        (MIME + b"Content-Type: text\r\n\r\n", Defect.BAD_CONTENT_TYPE),
        (MIME + b'Content-Type: text/plain; x="open\r\n\r\n', Defect.BAD_PARAMETER),
        (MIME + b"Content-Type: text/plain; x=1; x=2\r\n\r\n", Defect.BAD_PARAMETER),
        (MIME + b'Content-Type: text/plain; name="=?utf-8?q?x?="\r\n\r\n', Defect.ENCODED_WORD_PARAMETER),
        (MIME + b"Content-Type: text/plain; charset=no-such\r\n\r\n", Defect.UNKNOWN_CHARSET),
    ],
)
def test_each_defect_is_found_and_found_alone(content, defect):
    assert read(content).defects == (defect,)


def test_a_message_without_its_fields_lacks_them():
    assert read(b"\r\nx").defects == (Defect.MISSING_FROM, Defect.MISSING_DATE, Defect.MISSING_MESSAGE_ID)


def test_utf8_in_fields_is_no_defect_where_the_client_announced_it():
    assert read(MIME + b"Subject: \xc3\xa4\r\n\r\n", utf8=True).defects == ()
    assert read(MIME + b"Subject: \xe4\r\n\r\n", utf8=True).defects == (Defect.EIGHT_BIT_HEADER,)


def test_the_delimiter_of_an_outer_multipart_ends_the_inner_ones():
    content = multipart(b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\ninner", b"\r\nouter")
    parsed = read(content)
    assert [(p.section, content[p.body : p.end]) for p in parsed.parts if not p.composite] == [
        ("1.1.1", b"inner"),
        ("1.2", b"outer"),
    ]
    assert parsed.defects == (Defect.MISSING_END_BOUNDARY,)


def test_a_line_that_only_begins_with_the_boundary_is_no_delimiter():
    parsed = read(multipart(b"\r\none\r\n--bc\r\n--b -\r\n--b---\r\n --b"))
    assert parsed.texts[0].text == "one\r\n--bc\r\n--b -\r\n--b---\r\n --b"


def test_the_first_of_two_content_types_counts():
    parsed = read(MIME + b"Content-Type: text/html\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx")
    assert [part.type for part in parsed.parts] == ["text/html"]


@pytest.mark.parametrize("kind", [b"multipart/mixed; boundary=b%d", b"message/rfc822"])
def test_depth_is_bounded(kind):
    content = MIME
    for n in range(50):
        content += b"Content-Type: " + kind.replace(b"%d", b"%d" % n) + b"\r\n\r\n"
        content += b"--b%d\r\n" % n if b"%d" in kind else b""
    parsed = read(content, Limits(depth=5))
    assert len(parsed.parts) == 6
    assert Defect.TOO_DEEP in parsed.defects


def test_the_number_of_parts_is_bounded_and_the_rest_is_not_looked_at():
    parsed = read(multipart(*[b"\r\nx"] * 50), Limits(parts=10))
    assert len(parsed.parts) == 10
    assert not parsed.complete
    assert parsed.defects == (Defect.TOO_MANY_PARTS,)


def test_the_header_is_bounded_and_what_comes_after_it_is_still_read():
    long = b"X-Filler: " + b"a" * 2000 + b"\r\nContent-Type: text/html\r\n"
    parsed = read(multipart(long + b"\r\nx", long, b"\r\nlast"), Limits(header=1024))
    assert [part.type for part in parsed.parts] == ["multipart/mixed", "text/plain", "text/plain", "text/plain"]
    assert [text.text for text in parsed.texts] == ["x", "", "last"]
    assert parsed.defects == (Defect.HEADER_TOO_LARGE,)


def test_texts_are_bounded_together():
    parsed = read(multipart(b"\r\n" + b"a" * 60, b"\r\n" + b"b" * 60, b"\r\nc"), Limits(text=100))
    assert [(len(text.text), text.truncated) for text in parsed.texts] == [(60, False), (40, True), (0, True)]
    assert parsed.defects == (Defect.TOO_MUCH_TEXT,)


def found(content: bytes, options: dict[str, object] | None = None, **more) -> Mime:
    mime = Bench().find(MimePlugin, options, message=make_message(content), **more)
    assert isinstance(mime, Mime)
    return mime


def test_the_finding_holds_the_tree_and_its_record_no_text():
    mime = found(multipart(b"\r\nsecret words", b'Content-Type: image/png; name="a.png"\r\n\r\n'))
    assert mime.texts[0].text == "secret words"
    assert [part.section for part in mime.leaves] == ["1.1", "1.2"]
    record = mime.to_json()
    assert "secret" not in str(record)
    assert record["parts"][2] == {"section": "1.2", "type": "image/png", "size": 0, "names": ["a.png"]}


def test_the_record_shows_a_hundred_parts_at_most_and_says_that_there_were_more():
    record = found(multipart(*[b"\r\nx"] * 300)).to_json()
    assert (len(record["parts"]), record["parts"][-1]) == (101, "…")


def test_what_a_record_keeps_can_be_judged_again():
    mime = found(multipart(b'Content-Type: image/png; name="a.png"\r\nX: \0\r\n\r\n'))
    again = recall(Mime, json.loads(json.dumps(mime.to_json())))
    assert isinstance(again, Mime)
    assert again.defects == mime.defects
    assert [(p.section, p.type, p.filename, p.composite) for p in again.parts] == [
        ("1", "multipart/mixed", "", True),
        ("1.1", "image/png", "a.png", False),
    ]


def test_sizes_have_names():
    options = {"classes": {"small": "100B", "large": "1KiB"}}
    assert [MimeOptions.model_validate(options).size_class(n) for n in (100, 101, 1024, 1025)] == [
        "small",
        "large",
        "large",
        "",
    ]
    assert found(HEAD + b"\r\nx").size_class == "small"


def test_two_classes_of_one_size_are_refused():
    with pytest.raises(ValidationError, match="same size"):
        MimeOptions.model_validate({"classes": {"a": 1, "b": 1}})


def test_smtputf8_is_taken_from_the_transaction():
    content = MIME + b"Subject: \xc3\xa4\r\n\r\n"
    announced = make_transaction(parameters=MailParameters(smtputf8=True))
    assert found(content).defects == (Defect.EIGHT_BIT_HEADER,)
    assert found(content, transaction=announced).defects == ()


def test_defects_are_only_noted_by_default():
    assert not Bench().judge(MimePlugin, findings=[found(b"\0\r\n")]).decisive


@pytest.mark.parametrize(("action", "code"), [("reject", 554), ("defer", 451), ("quarantine", None)])
def test_a_defect_is_refused_where_the_operator_says_so(action, code):
    verdict = Bench().judge(
        MimePlugin, {"refuse_defects": {"nul-in-header": action}}, findings=[found(HEAD + b"X: \0\r\n\r\n")]
    )
    assert verdict.action is Action(action)
    assert (verdict.reply.code if verdict.reply else None) == code
    assert verdict.reason == "MIME defects: nul-in-header"


def test_of_several_defects_the_strongest_action_is_done():
    options = {
        "refuse_defects": {"missing-from": "quarantine", "missing-date": "defer", "missing-message-id": "reject"}
    }
    assert Bench().judge(MimePlugin, options, findings=[found(b"\r\nx")]).action is Action.REJECT


def test_a_misspelt_defect_is_refused():
    with pytest.raises(ValidationError, match="no-boundary"):
        MimeOptions.model_validate({"refuse_defects": {"nul": "reject"}})
