"""Records without local parts: what goes, what stays, and what cannot be told from what is left."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.ops.redaction import KeyFileError, Redactor, is_hidden, make_key, read_key
from gateway.ops.search import Search
from gateway.pipeline.hidden import NotTold
from gateway.pipeline.past import Past
from gateway.sdk.testing import make_client_certificate

REDACT = Redactor(bytes(range(32)))
ANNA, BEN = REDACT.address("anna@sender.example"), REDACT.address("Ben.K+news@example.org")


def record(**more: Any) -> dict[str, Any]:
    return {
        **{"v": 1, "id": "1M", "session": "1", "time": 1.0, "listener": "edge", "helo": "mail.sender.example"},
        **{"client": {"ip": "192.0.2.1", "port": 1, "name": "mail.sender.example"}, "tls": None, "size": 3},
        **{"sender": "anna@sender.example", "outcome": "rejected", "reply": "550 5.1.1 no", "pipeline": "default"},
        "recipients": [{"address": "Ben.K+news@example.org", "reply": "550 5.1.1 <ben.k+news@example.org>: unknown"}],
        "findings": [],
        "verdicts": [],
        "edits": [],
        **more,
    }


def test_addresses_are_hashed_the_same_in_any_case_and_domains_stay() -> None:
    assert ANNA == REDACT.address("ANNA@sender.example") and ANNA.endswith("@sender.example") and is_hidden(ANNA)
    assert REDACT.address("anna@Sender.Example").partition("@")[0] == ANNA.partition("@")[0]
    assert len({ANNA, REDACT.address("anna@other.example"), Redactor(bytes(32)).address("anna@sender.example")}) == 3
    assert REDACT.address('"anna"@sender.example') == ANNA
    for text in ("<>", "", "postmaster", "Postmaster@example.org", "abuse@example.org", "@example.org"):
        assert REDACT.address(text) == text


def test_names_in_a_clients_certificate_are_redacted_and_what_tells_it_from_others_stays() -> None:
    shown = make_client_certificate("anna@sender.example", "email:anna@sender.example", "DNS:x.example", issuer="Anna")
    shown = dataclasses.replace(shown, fingerprint="AB:CD", serial="ANNA")
    tls = {
        "version": "TLSv1.3",
        "cipher": "any",
        "sni": "",
        "client": {**dataclasses.asdict(shown), "names": [*shown.names]},
    }
    out = REDACT.record(record(tls=tls))
    client = out["tls"]["client"]
    assert (client["subject"], client["names"]) == (ANNA, [f"email:{ANNA}", "DNS:x.example"])
    assert (client["fingerprint"], client["serial"], client["verified"]) == ("AB:CD", "ANNA", True)
    assert out["redacted"] == ["tls.client.subject", "tls.client.names", "tls.client.issuer"]
    told = Past(out, lambda client: False).session.tls
    assert told and told.client and told.client.verified and told.client.fingerprint == "AB:CD"
    for name in ("subject", "names", "issuer"):
        with pytest.raises(NotTold, match=rf"session\.tls\.client\.{name} was redacted"):
            bool(getattr(told.client, name))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("User anna unknown", f"User {ANNA[:25]} unknown"),
        ("<anna@sender.example>: no", f"<{ANNA}>: no"),
        ("no such user: Anna.", f"no such user: {ANNA[:25]}."),
        ("/var/mail/anna/new is full", f"/var/mail/{ANNA[:25]}/new is full"),
        ("anna+x@sender.example", REDACT.address("anna+x@sender.example")),
        ("user anna+x", f"user {ANNA[:25]}"),
        ("u=anna%40sender.example&x", f"{REDACT.local('u=anna', 'sender.example')}%40sender.example&x"),
        ("carl@third.example wrote", f"{REDACT.address('carl@third.example')} wrote"),
        ('"carl x"@third.example wrote', f"{REDACT.address('carl x@third.example')} wrote"),
        ("annabel, hannah and anna.example stay", "annabel, hannah and anna.example stay"),
        ("a list @sender.example stays", "a list @sender.example stays"),
        ("postmaster@sender.example stays", "postmaster@sender.example stays"),
    ],
)
def test_local_parts_go_from_free_text(text: str, left: str) -> None:
    assert REDACT.record(record(reply=text))["reply"] == left


def test_a_domain_that_looks_like_a_local_part_stays() -> None:
    told = record(sender="mail@mail.example", helo="mail.example", reply="x@mail is mail.example")
    out = REDACT.record(told)
    assert out["helo"] == "mail.example" and out["reply"].endswith("@mail is mail.example")
    assert out["redacted"] == []


def test_findings_say_which_of_their_fields_were_changed() -> None:
    found = {"stage": "rcpt", "plugin": "recipient", "finding": "RecipientStatus", "ms": 1.0}
    value = {"state": "unknown", "source": "callout", "reply": "550 ben.k is gone", "deep": [{"x": ["ben.k+news"]}]}
    out = REDACT.record(record(findings=[{**found, "recipient": "Ben.K+news@example.org", "value": value}, found]))
    told = out["findings"][0]
    assert told["redacted"] == ["reply", "deep"] and told["value"]["state"] == "unknown" and told["recipient"] == BEN
    assert told["value"]["deep"] == [{"x": [BEN.partition("@")[0]]}] and out["findings"][1] == found


def test_header_values_of_edits_are_left_out_wherever_edits_stand() -> None:
    edit = {"edit": "ChangeHeader", "name": "Subject", "nth": 1, "value": "Hello Carl", "was": ["Carl"]}
    gone = {"edit": "ChangeHeader", "name": "Subject", "nth": 1}
    redirect = {"edit": "Redirect", "recipient": "anna@sender.example"}
    finding = {"stage": "message", "plugin": "milter", "finding": "MilterReply", "value": {"edits": [edit, redirect]}}
    verdict = {"stage": "message", "plugin": "milter", "action": "proceed", "shadow": False, "edits": [edit]}
    out = REDACT.record(record(edits=[edit, redirect], findings=[finding], verdicts=[verdict]))
    there = {"edit": "Redirect", "recipient": ANNA}
    assert out["edits"] == [gone, there] == out["findings"][0]["value"]["edits"]
    assert out["verdicts"][0]["edits"] == [gone] and out["findings"][0]["redacted"] == ["edits"]


def test_a_session_whose_texts_were_changed_says_so() -> None:
    out = REDACT.record(record(helo="anna", client={"ip": "192.0.2.1", "port": 1, "name": "anna"}))
    assert out["redacted"] == ["helo", "client.name"] and "anna" not in json.dumps(out).replace("sender", "")


def test_attempts_are_redacted_too() -> None:
    attempt = {"time": 1.0, "recipient": "ben@example.org", "outcome": "failed", "host": "store", "seconds": 1.0}
    (out,) = REDACT.attempts([{**attempt, "reply": "550 ben: no such user <Ben@example.org>"}])
    ben = REDACT.address("ben@example.org")
    hidden = ben.partition("@")[0]
    assert out == {**attempt, "recipient": ben, "reply": f"550 {hidden}: no such user <{ben}>"}


# Long enough not to turn up in a key or a word of the record by chance.
LOCAL = st.from_regex(r"q[a-z0-9.!#$%&'*+/=?^_`{|}~-]{5,20}z", fullmatch=True)
WHERE = st.sampled_from(
    ["{}", "user {} unknown", "<{}@x.example>", "/mail/{}/", "{}.", "'{}'", "id={}", "{}@[192.0.2.1]"]
)


@settings(max_examples=50, deadline=None)
@given(LOCAL, LOCAL, st.lists(WHERE, max_size=5), st.booleans())
def test_no_local_part_is_left_anywhere(sender: str, recipient: str, where: list[str], upper: bool) -> None:
    texts = [place.format(name.upper() if upper else name) for place in where for name in (sender, recipient)]
    told = record(
        sender=f"{sender}@sender.example",
        recipients=[{"address": f"{recipient}@example.org", "reply": " ".join(texts)}],
        findings=[{"stage": "rcpt", "finding": "F", "recipient": f"{recipient}@example.org", "value": {"a": texts}}],
        verdicts=[{"action": "reject", "reason": text, "recipients": [f"{recipient}@example.org"]} for text in texts],
        edits=[{"edit": "AddHeader", "name": "X", "index": 0, "value": text} for text in texts],
        mta={"through": "milter", "left_out": texts},
    )
    before = deepcopy(told)
    out = json.dumps(REDACT.record(told)).lower()
    assert told == before
    for local in (sender, recipient):
        # As JSON would write it.
        assert json.dumps(local.lower())[1:-1] not in out


KEYS = st.sampled_from(
    ["sender", "recipients", "address", "findings", "value", "verdicts", "edits", "edit", "name", "client"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), below, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, JSON, max_size=6))
def test_whatever_a_record_holds_redacting_it_ends_in_json_and_changes_nothing_of_it(told: dict[str, Any]) -> None:
    before = deepcopy(told)
    assert json.loads(json.dumps(REDACT.record(told)))["redacted"] is not None
    assert told == before


def test_a_search_by_the_full_address_finds_redacted_records_and_others() -> None:
    plain, redacted = record(), REDACT.record(record())
    for search in (Search(sender="Anna@Sender.example"), Search(recipient="ben.k+news@example.org")):
        assert search.matches(plain) and not search.matches(redacted)
        through = search.through(REDACT.address)
        assert through.matches(plain) and through.matches(redacted)
    assert Search(sender=ANNA).matches(redacted) and Search(sender="sender.example").matches(redacted)
    assert not Search(sender="ann@sender.example").through(REDACT.address).matches(redacted)


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "below" / "redact.key"
    key = make_key(str(path))
    assert len(key) == 32 and key == make_key(str(path)) == read_key(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and os.listdir(path.parent) == ["redact.key"]


@pytest.mark.parametrize("content", [b"", b"abc", b"0" * 63, b"x" * 64, b"0" * 64 + b"1", bytes(64)])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "redact.key"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match="64 hexadecimal digits"):
        make_key(str(path))


def test_a_key_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot read the redaction key"):
        read_key(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match="cannot make the redaction key"):
        make_key(str(tmp_path / "file" / "redact.key"))
