"""Findings read back from their JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.kit.strategies import findings, texts
from gateway.pipeline.recall import Memory, RecallError, recall
from gateway.sdk import (
    NULL_SENDER,
    Access,
    AddHeader,
    AddRecipient,
    Address,
    Attachment,
    Attachments,
    BodyContent,
    ChangeHeader,
    ChangeSender,
    ContentChecks,
    DelegatedAction,
    DeleteHeader,
    DeleteRecipient,
    Dkim,
    Dmarc,
    Dnsbl,
    Finding,
    Greylist,
    ListHit,
    MilterAction,
    MilterReply,
    Prioritize,
    Priority,
    Rate,
    Recipient,
    RecipientStatus,
    Redirect,
    ReplaceBody,
    Reroute,
    SpamScore,
    Spf,
    SpfResult,
    field_value,
)

BEN = Address("ben", "example.org")


@pytest.mark.parametrize(
    "finding",
    [
        Dnsbl(3.0, (ListHit("a", ("127.0.0.2",), 2.0),), ("b",), ("spam",), "2026-01-01"),
        Spf(SpfResult.PASS, "sender.test", SpfResult.NONE, "client.test"),
        MilterReply(
            MilterAction.CONTINUE,
            "m",
            edits=(
                AddHeader("A", "b", index=3, lead=""),
                ChangeHeader("A", 1, "c", lead="\t"),
                DeleteHeader("A", 2),
                ChangeSender(NULL_SENDER),
                ChangeSender(BEN),
                AddRecipient(Recipient(BEN)),
                DeleteRecipient(BEN),
                Redirect(Recipient(BEN)),
                Reroute("lmtp:127.0.0.1:24"),
                Prioritize(Priority.HIGH),
            ),
        ),
    ],
)
def test_what_is_recorded_whole_is_read_back_as_it_was(finding: Finding) -> None:
    assert recall(type(finding), finding.to_json()) == finding


HEADER_EDITS = st.builds(AddHeader, st.just("X-A"), texts().map(field_value)) | st.builds(DeleteHeader, st.just("X-A"))


@pytest.mark.parametrize(
    "kind",
    [
        Access,
        ContentChecks,
        DelegatedAction,
        Dkim,
        Dmarc,
        Dnsbl,
        Greylist,
        MilterReply,
        Rate,
        RecipientStatus,
        SpamScore,
        Spf,
    ],
    ids=lambda kind: kind.__name__,
)
def test_whatever_was_found_is_read_back_as_it_was_through_json(kind: type[Finding]) -> None:
    # Of other edits a record keeps less than there is, and of a milter without a name nothing.
    own = {"edits": st.lists(HEADER_EDITS, max_size=3).map(tuple), "milter": st.just("m")}
    own = {name: values for name, values in own.items() if name in kind.__dataclass_fields__}

    @settings(max_examples=25)
    @given(findings(kind, **own))
    def is_read_back(finding: Finding) -> None:
        assert recall(kind, json.loads(json.dumps(finding.to_json()))) == finding

    is_read_back()


def test_fields_that_are_left_out_have_their_defaults() -> None:
    assert recall(Dnsbl, {"score": 1}) == Dnsbl(1.0)


@dataclass(frozen=True, slots=True)
class Own(Finding):
    """A finding of somebody's plugin."""

    words: frozenset[str]
    place: tuple[int, str] | None = None


def test_findings_of_any_plugin_are_read_back() -> None:
    own = Own(frozenset({"a", "b"}), (1, "x"))
    assert recall(Own, own.to_json()) == own


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Dnsbl, {}),
        (Dnsbl, {"score": "high"}),
        (Dnsbl, {"score": 1, "hits": "…"}),
        (Dnsbl, {"score": 1, "colour": "red"}),
        (Spf, {"result": "maybe", "domain": "", "helo": "none", "helo_domain": ""}),
        (MilterReply, {"action": "continue", "milter": "m", "edits": [{"edit": "Explode"}]}),
        (MilterReply, {"action": "continue", "milter": "m", "edits": [{"edit": "AddHeader", "name": "X"}]}),
        (MilterReply, {"action": "continue", "milter": "m", "edits": [{"name": "X"}]}),
    ],
)
def test_what_is_no_such_finding_is_refused(kind: type[Finding], value: dict[str, Any]) -> None:
    with pytest.raises(RecallError, match=r"\w"):
        recall(kind, value)


@pytest.mark.parametrize("words", [["w" * 5000], [str(number) for number in range(1100)]])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_what_was_cut_when_it_was_recorded_is_not_taken_for_the_whole(words: list[str], ascii_only: bool) -> None:
    octets = json.dumps(Own(frozenset(words)).to_json(), ensure_ascii=ascii_only).encode()
    with pytest.raises(RecallError, match="was cut when it was recorded"):
        Memory().recall(Own, octets)


@pytest.mark.parametrize("names", [("a.txt",), ("a.txt", "a.exe")])
def test_all_names_of_an_attachment_are_read_back(names: tuple[str, ...]) -> None:
    found = Attachments((Attachment("a.txt", names=names),))
    assert recall(Attachments, found.to_json()) == found


def test_a_body_is_in_no_record() -> None:
    edited = MilterReply(MilterAction.CONTINUE, "m", edits=(ReplaceBody(BodyContent(b"x")),))
    with pytest.raises(RecallError, match="ReplaceBody"):
        recall(MilterReply, edited.to_json())


def test_the_error_names_the_field_and_has_the_way_to_it() -> None:
    hits = [{"zone": "a", "codes": [], "weight": 1}, {"zone": "b", "codes": [], "weight": "heavy"}]
    with pytest.raises(RecallError, match=r"^Dnsbl: hits.1.weight: ") as caught:
        recall(Dnsbl, {"score": 1, "hits": hits})
    assert caught.value.path == ("hits", 1, "weight")
    with pytest.raises(RecallError, match=r"^Dnsbl has no field 'scor'; it has score, hits, ") as caught:
        recall(Dnsbl, {"scor": 1})
    assert caught.value.path == ("scor",)
    with pytest.raises(RecallError, match=r"^Spf needs domain, helo, helo_domain$") as caught:
        recall(Spf, {"result": "pass"})
    assert caught.value.path == ()
