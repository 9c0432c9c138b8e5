"""Whatever comes from an MTA is survived, and whatever filters want is told to it so that it comes out right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.guest.actions import Owed, refusal
from gateway.guest.attributes import ATTRIBUTES, REQUEST_OCTETS, AttributeReader, BadRequest
from gateway.guest.changes import APPEND, InsertField, SetField, plan
from gateway.guest.envelope import mail_parameters, parse_recipient, parse_sender
from gateway.guest.request import RequestError, State, read_request
from gateway.guest.ruling import Ruling
from gateway.mail.address import NULL_SENDER, Address, AddressError
from gateway.mail.edit import END, AddHeader, ChangeHeader, DeleteHeader, Edit, apply_edits
from gateway.mail.envelope import Envelope
from gateway.mail.message import HeaderField
from gateway.mail.reply import Reply
from gateway.sdk.verdict import Action
from tests.guest.setting import attributes

PIECES = st.one_of(
    st.sampled_from(
        [
            b"request=smtpd_access_policy\n",
            b"protocol_state=RCPT\n",
            b"\n",
            b"\n\n",
            b"sender=a@b.test\n",
            b"instance=1\n",
            b"=",
            b"a=" + b"x" * 3000,
            b"\r\n",
            b"\0",
        ]
    ),
    st.binary(max_size=40),
)


@given(st.lists(PIECES, max_size=60))
def test_any_octets_are_survived_and_cutting_them_elsewhere_changes_nothing(pieces: list[bytes]) -> None:
    reader, whole = AttributeReader(), AttributeReader()
    out = [found for piece in pieces for found in reader.feed(piece)]
    assert out == whole.feed(b"".join(pieces))
    assert len(reader._line) <= REQUEST_OCTETS
    for n, found in enumerate(out):
        if isinstance(found, BadRequest):
            assert n == len(out) - 1
        else:
            assert len(found) <= ATTRIBUTES
            assert not any("\n" in value or "\0" in value for value in found.values())


@given(st.dictionaries(st.sampled_from(sorted(attributes())), st.text(max_size=40)))
def test_any_attributes_are_a_request_or_none(more: dict[str, str]) -> None:
    try:
        request = read_request(attributes(**more))
    except RequestError:
        return
    assert isinstance(request.state, State)
    assert 0 <= request.port < 65536


@given(st.one_of(st.text(max_size=90), st.from_regex(r"<?[a-z\"@.: \\]{0,12}@?[a-z.\[\]0-9-]{0,12}>?", fullmatch=True)))
def test_any_address_is_one_that_can_be_written_again_or_none(text: str) -> None:
    for parse in (parse_sender, parse_recipient):
        try:
            address = parse(text, "mx.test")
        except AddressError:
            continue
        if address is not NULL_SENDER:
            assert isinstance(address, Address)
            assert parse(f"<{address}>", "mx.test") == address
            assert not any(character < " " or "\x7f" <= character < "\xa0" for character in str(address))


@given(st.lists(st.text(max_size=60), max_size=50))
def test_any_parameters_are_survived(parameters: list[str]) -> None:
    assert mail_parameters(parameters).size >= 0


NAMES = st.sampled_from(["X-A", "x-a", "X-B", "Subject", "Received"])
VALUES = st.sampled_from(["1", "2", "a\n b", "caf\u00e9"])
EDITS = st.lists(
    st.one_of(
        st.builds(AddHeader, NAMES, VALUES, st.sampled_from([0, 1, 2, 5, END]), st.sampled_from([" ", "", "\t"])),
        st.builds(ChangeHeader, NAMES, st.integers(1, 4), VALUES),
        st.builds(DeleteHeader, NAMES, st.integers(0, 4)),
    ),
    max_size=8,
)


class Mta:
    """A message as an MTA changes it. Deleted fields go on counting where it is `lazy`, as Sendmail's do.

    Its own Received field is on top, and no milter sees or numbers it.
    """

    def __init__(self, fields: list[HeaderField], *, lazy: bool) -> None:
        self.fields: list[HeaderField | None] = list(fields)
        self.names = [field.name for field in fields]
        self.own = 0
        self.lazy = lazy

    def make(self, call: SetField | InsertField) -> None:
        if isinstance(call, InsertField):
            self._insert(call)
            return
        seen = 0
        for at, name in enumerate(self.names):
            counts = self.fields[at] is not None or self.lazy
            if counts and name.lower() == call.name.lower():
                seen += 1
                if seen == call.nth:
                    self.fields[at] = None if call.value is None else self._field(call.name, call.value)
                    return
        raise AssertionError(f"there is no {call}")

    def _insert(self, call: InsertField) -> None:
        field = self._field(call.name, call.value)
        if call.index == APPEND:
            at = len(self.fields)
        elif call.index <= self.own:
            at, self.own = call.index, self.own + 1
        else:
            places = [i for i, kept in enumerate(self.fields) if kept is not None]
            wanted = call.index - 1
            at = places[wanted] if wanted < len(places) else len(self.fields)
        self.fields.insert(at, field)
        self.names.insert(at, call.name)

    def _field(self, name: str, value: str) -> HeaderField:
        return HeaderField(name, f"{name}:{value}\r\n".replace("\n ", "\r\n ").encode())

    @property
    def left(self) -> list[HeaderField]:
        return [field for field in self.fields if field is not None]


@given(st.lists(NAMES, max_size=6), EDITS, st.booleans())
def test_header_edits_come_out_as_they_were_meant_however_the_mta_counts(
    names: list[str], edits: list[Edit], lazy: bool
) -> None:
    fields = [HeaderField(name, f"{name}: field {n}\r\n".encode()) for n, name in enumerate(names)]
    mta = Mta(fields, lazy=lazy)
    for call in plan(fields, Envelope(NULL_SENDER, ()), edits).fields:
        mta.make(call)
    wanted = apply_edits(fields, edits)
    assert [field.raw for field in mta.left] == [field.raw for field in wanted]


@given(
    st.sampled_from([Action.REJECT, Action.DEFER, Action.DISCONNECT]),
    st.integers(400, 599),
    st.text(max_size=600),
    st.text(max_size=30),
)
def test_every_refusal_is_one_short_line_of_ascii(action: Action, code: int, text: str, reason: str) -> None:
    reply = Reply(code, "7.1", text).referring("0123456789ABC1")
    said = refusal(Ruling(action, reply, reason), reply)
    assert said.isascii() and said.isprintable()
    assert len(said) < 500
    assert said.endswith(" (ref 0123456789ABC1)")
    assert said[0] == str(code)[0]
    owed = Owed(discard=text or "x")
    assert owed.next(State.RCPT).isprintable()
