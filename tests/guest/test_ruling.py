"""One ruling from what was decided of several recipients."""

from __future__ import annotations

from gateway.guest.ruling import Ruling, SplitRefused, carry, outcome_of, settle
from gateway.mail.edit import AddHeader
from gateway.pipeline.decision import PROCEEDED, Decision, Part
from gateway.sdk.ending import Outcome
from gateway.sdk.testing import make_recipient
from gateway.sdk.verdict import PROCEED, Action, accept, defer, discard, quarantine, reject

ANN, BEN, EVA = (make_recipient(f"{name}@example.org") for name in ("ann", "ben", "eva"))
EDIT = AddHeader("X-A", "1")


def test_what_is_about_everybody_stays_as_it_is() -> None:
    ruling = settle(Decision(reject("7.1", "no"), "entry"), (ANN, BEN), SplitRefused.QUARANTINE)
    assert (ruling.action, str(ruling.reply), ruling.entry) == (Action.REJECT, "550 5.7.1 no", "entry")
    assert settle(PROCEEDED, (ANN,), SplitRefused.DISCARD) == Ruling(Action.PROCEED)


def test_a_deferral_of_some_defers_all() -> None:
    decision = Decision(PROCEED, parts=(Part((BEN,), defer("3.0", "later"), "slow"),))
    ruling = settle(decision, (ANN, BEN), SplitRefused.DISCARD)
    assert (ruling.action, ruling.entry) == (Action.DEFER, "slow")


def test_who_is_refused_among_others_keeps_the_message_or_is_taken_off_it() -> None:
    decision = Decision(PROCEED, edits=(EDIT,), parts=(Part((BEN,), reject("7.1", "no"), "strict", (EDIT,)),))
    held = settle(decision, (ANN, BEN), SplitRefused.QUARANTINE)
    assert (held.action, held.reason, held.edits, held.dropped) == (
        Action.QUARANTINE,
        "refused (550 5.7.1 no) for some",
        (EDIT,),
        (),
    )
    taken_off = settle(decision, (ANN, BEN), SplitRefused.DISCARD)
    assert (taken_off.action, taken_off.edits, taken_off.dropped) == (Action.PROCEED, (EDIT,), (BEN,))


def test_refusals_of_all_recipients_refuse_and_discards_of_all_discard() -> None:
    both = Decision(PROCEED, parts=(Part((ANN,), reject("7.1", "a")), Part((BEN,), reject("7.2", "b"))))
    assert str(settle(both, (ANN, BEN), SplitRefused.QUARANTINE).reply) == "550 5.7.1 a"
    gone = Decision(PROCEED, parts=(Part((ANN,), discard("a")), Part((BEN,), reject("7.2", "b"))))
    assert settle(gone, (ANN, BEN), SplitRefused.DISCARD).action is Action.DISCARD
    assert settle(gone, (ANN, BEN), SplitRefused.QUARANTINE).action is Action.QUARANTINE


def test_edits_for_some_only_are_left_out_and_said_to_be() -> None:
    decision = Decision(accept(), parts=(Part((BEN,), PROCEED, "", (EDIT,)),))
    ruling = settle(decision, (ANN, BEN, EVA), SplitRefused.QUARANTINE)
    assert (ruling.action, ruling.edits) == (Action.PROCEED, ())
    assert ruling.left_out == ("edits that are for some recipients only",)


def test_what_earlier_stages_wanted_holds_unless_the_message_is_refused() -> None:
    fine, refused = (
        Ruling(Action.PROCEED, edits=(EDIT,)),
        settle(Decision(reject("7.1", "no")), (ANN,), SplitRefused.DISCARD),
    )
    assert carry(fine, "", "odd").action is Action.QUARANTINE
    assert carry(fine, "", "odd").edits == (EDIT,)
    assert carry(fine, "gone", "odd").action is Action.DISCARD
    assert carry(refused, "gone", "odd") is refused
    aside = settle(Decision(quarantine("later reason")), (ANN,), SplitRefused.DISCARD)
    assert [outcome_of(r) for r in (fine, refused, aside)] == [
        Outcome.ACCEPTED,
        Outcome.REJECTED,
        Outcome.QUARANTINED,
    ]
