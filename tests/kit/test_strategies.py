"""What the strategies give is what they say: well formed where they say so, and as odd as it may be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.kit import strategies
from gateway.kit.door import Door
from gateway.mail.address import NULL_SENDER, parse_forward_path, parse_mailbox, parse_reverse_path, split_path
from gateway.mail.edit import EDITS
from gateway.sdk import Address, Edit, Finding, MilterReply, Mime, Session, Spf
from gateway.sdk.testing import Bench, make_message
from gateway.smtp.command import Mail, parse_mail, parse_rcpt

FEW = settings(max_examples=40)


def kinds() -> list[type[Finding]]:
    """Every finding that is declared in the SDK and in our plugins, once."""
    for point in entry_points(group="gatepost.plugins"):
        if point.module.split(".")[0] == "plugins":
            point.load()
    found: dict[str, type[Finding]] = {}
    pending = list(Finding.__subclasses__())
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind.__module__.split(".")[0] in ("gateway", "plugins"):
            found[f"{kind.__module__}.{kind.__name__}"] = kind
    return [found[name] for name in sorted(found)]


KINDS = kinds()


def missing(strategy: st.SearchStrategy[Any], wanted: Mapping[str, Callable[[Any], bool]], examples: int) -> set[str]:
    """The names of what is not among so many values that the strategy gives."""
    left = dict(wanted)

    @settings(max_examples=examples, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def look(value: Any) -> None:
        for name in [name for name, holds in left.items() if holds(value)]:
            del left[name]

    look()
    return set(left)


@FEW
@given(strategies.addresses(), strategies.senders())
def test_addresses_are_such_as_the_grammar_takes(address: Address, sender: Any) -> None:
    assert parse_mailbox(str(address), utf8=True) == address
    assert split_path(f"<{address}>") == (str(address), "")
    assert parse_reverse_path(str(sender), utf8=True) == sender


@FEW
@given(strategies.addresses(utf8=False))
def test_without_utf8_addresses_are_plain(address: Address) -> None:
    assert parse_mailbox(str(address)) == address and str(address).isascii()


def test_addresses_of_all_kinds_come() -> None:
    wanted = {
        "IPv6": lambda a: a.domain.startswith("[IPv6:"),
        "IPv4": lambda a: a.domain.startswith("[") and ":" not in a.domain,
        "quoted": lambda a: '"' in str(a),
        "at in local": lambda a: "@" in a.local,
        "UTF-8 local": lambda a: not a.local.isascii(),
        "U-label": lambda a: not a.domain.isascii(),
        "dots": lambda a: "." in a.local,
    }
    assert missing(strategies.addresses(), wanted, 300) == set()
    assert missing(strategies.senders(), {"null": lambda sender: sender is NULL_SENDER}, 20) == set()


@FEW
@given(strategies.envelopes())
def test_envelopes_are_such_as_the_front_door_takes(envelope: Any) -> None:
    assert len({r.address.key for r in envelope.recipients}) == len(envelope.recipients) > 0
    parameters = envelope.parameters
    words = [f"SIZE={parameters.size}" if parameters.size else "", f"BODY={parameters.body}"]
    words += ["SMTPUTF8" if parameters.smtputf8 else "", f"RET={parameters.ret}" if parameters.ret else ""]
    words += [f"ENVID={parameters.envid}" if parameters.envid else ""]
    command = f"FROM:<{envelope.sender}> {' '.join(filter(None, words))}"
    assert parse_mail(command, esmtp=True) == Mail(envelope.sender, parameters)
    for recipient in envelope.recipients:
        notify = f" NOTIFY={','.join(sorted(recipient.notify))}" if recipient.notify else ""
        orcpt = f" ORCPT={recipient.orcpt}" if recipient.orcpt else ""
        assert parse_forward_path(str(recipient.address), utf8=True) == recipient.address
        told = parse_rcpt(f"TO:<{recipient.address}>{notify}{orcpt}", esmtp=True, smtputf8=parameters.smtputf8)
        assert told == recipient


@FEW
@given(strategies.transactions(), strategies.sessions())
def test_transactions_belong_to_their_session(transaction: Any, session: Session) -> None:
    assert transaction.id.startswith(transaction.session.id)
    assert len(session.id) == 13 and session.helo


@FEW
@given(strategies.messages())
def test_messages_that_are_well_made_have_no_defects(octets: bytes) -> None:
    bare = octets.replace(b"\r\n", b"")
    assert b"\r" not in bare and b"\n" not in bare and b"\0" not in octets
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    found = Bench().find("mime", message=make_message(octets))
    assert isinstance(found, Mime)
    # Octets over 127 in fields are UTF-8, which only a client that says SMTPUTF8 may send.
    odd = {"eight-bit-header"}
    assert {str(d) for d in found.defects} | {str(d) for part in found.parts for d in part.defects} <= odd


def test_hostile_messages_of_all_kinds_come() -> None:
    wanted = {
        "bare LF": lambda o: b"\n" in o.replace(b"\r\n", b""),
        "bare CR": lambda o: b"\r" in o.replace(b"\r\n", b""),
        "NUL": lambda o: b"\0" in o,
        "long line": lambda o: max(map(len, o.split(b"\r\n"))) > 998,
        "deep": lambda o: o.count(b"boundary=") > 50,
        "deep messages": lambda o: o.count(b"message/rfc822") > 50,
        "never closed": lambda o: o.count(b"--b--") < o.count(b"boundary=b\r\n"),
        "octets": lambda o: b"\xff" in o,
        "nothing": lambda o: o == b"",
    }
    assert missing(strategies.hostile_messages(), wanted, 300) == set()


@pytest.mark.slow
def test_whatever_comes_the_front_door_takes_it_or_refuses_it_and_nothing_bare_is_queued(tmp_path: Path) -> None:
    with Door(tmp_path / "spool", []) as door:

        @settings(max_examples=40, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck))
        @given(strategies.hostile_messages(), strategies.envelopes())
        def send(octets: bytes, envelope: Any) -> None:
            session = door.connect()
            reply = session.message(octets, sender=str(envelope.sender))
            assert reply.code in (250, 550, 552, 554)
            session.close()

        send()
        assert door.queued
        for queued in door.queued:
            bare = queued.content.replace(b"\r\n", b"")
            assert b"\r" not in bare and b"\n" not in bare


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_declared_finding_has_values_that_a_record_can_hold(kind: type[Finding]) -> None:
    seen: dict[str, set[str]] = {field.name: set() for field in dataclasses.fields(kind)}

    @settings(max_examples=12, deadline=None)
    @given(strategies.findings(kind))
    def is_one(found: Finding) -> None:
        assert type(found) is kind
        hash(repr(found))
        json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False).encode()
        assert isinstance(found.idle(), bool) and isinstance(found.authentication(), tuple)
        for name, values in seen.items():
            values.add(repr(getattr(found, name)))

    is_one()
    assert all(len(values) > 1 for values in seen.values()), "every field has several values"


def test_edits_of_every_kind_come() -> None:
    wanted = {edit.__name__: lambda reply, edit=edit: any(type(e) is edit for e in reply.edits) for edit in EDITS}
    still = dict.fromkeys(["milter", "detail", "text", "quarantine"], st.just(""))
    assert missing(strategies.findings(MilterReply, **still), wanted, 250) == set()


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    number: int
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rich(Finding):
    """All the types that a field may have."""

    flag: bool
    share: float
    octets: bytes
    colour: Colour
    maybe: Inner | None
    pair: tuple[int, Colour]
    by_name: Mapping[str, Inner]
    names: frozenset[str]
    mode: Literal["on", "off"]
    limited: Annotated[int, "units"]
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        if self.share < 0:
            raise ValueError("a share is not negative")


@FEW
@given(strategies.findings(Rich))
def test_all_types_of_fields_have_values_and_the_class_itself_is_heeded(found: Rich) -> None:
    assert found.share >= 0 and found.mode in ("on", "off") and isinstance(found.colour, Colour)
    assert all(isinstance(inner, Inner) for inner in found.by_name.values())


@FEW
@given(strategies.findings(Spf, domain=st.just("example.org")))
def test_some_fields_can_have_a_strategy_of_ones_own(found: Spf) -> None:
    assert found.domain == "example.org"


@dataclass(frozen=True, slots=True)
class Socketed(Finding):
    """Holds what no record can."""

    where: Path


def test_what_has_no_strategy_is_said() -> None:
    with pytest.raises(TypeError, match=r"Socketed.where is .*give a strategy for it"):
        strategies.findings(Socketed)
    strategies.findings(Socketed, where=st.just(Path("x")))
    with pytest.raises(TypeError, match="Spf has no field nonsense"):
        strategies.findings(Spf, nonsense=st.none())
