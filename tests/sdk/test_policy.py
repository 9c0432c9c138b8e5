"""Policies: what is read from the class, and what is refused when it is made."""

from __future__ import annotations

from typing import Any, Optional, Union

import pytest

from gateway.sdk import (
    PROCEED,
    Message,
    Policy,
    PolicyOptions,
    Rate,
    Recipient,
    Session,
    Spf,
    Stage,
    Transaction,
    Verdict,
)
from gateway.sdk.policy import Hook
from gateway.sdk.testing import Bench


def test_hooks_are_read_from_annotations() -> None:
    class Guard(Policy):
        name = "guard"

        def on_connect(self, session: Session) -> Verdict:
            return PROCEED

        def on_message(self, txn: Transaction, message: Message, spf: Spf | None, rate: Rate) -> Verdict:
            return PROCEED

    assert Guard.hooks == {
        Stage.CONNECT: Hook("on_connect", Stage.CONNECT, (Session,), (False,)),
        Stage.MESSAGE: Hook(
            "on_message", Stage.MESSAGE, (Transaction, Message, Spf, Rate), (False, False, True, False)
        ),
    }


def test_a_finding_may_be_optional_in_every_spelling() -> None:
    class Guard(Policy):
        def on_mail(self, a: Spf | None, b: Optional[Rate], c: Union[None, Spf]) -> Verdict:  # noqa: UP007, UP045, RUF036
            return PROCEED

    assert Guard.hooks[Stage.MAIL].optional == (True, True, True)


def test_hooks_are_inherited_and_overridden() -> None:
    class Base(Policy):
        def on_mail(self, spf: Spf) -> Verdict:
            return PROCEED

        def on_rcpt(self, recipient: Recipient) -> Verdict:
            return PROCEED

    class Child(Base):
        def on_mail(self, rate: Rate) -> Verdict:  # type: ignore[override]
            return PROCEED

    assert Child.hooks[Stage.MAIL].inputs == (Rate,)
    assert Child.hooks[Stage.RCPT].inputs == (Recipient,)


def _plain(self: Any, session: Session) -> Verdict: ...
def _no_return(self: Any, session: Session): ...  # type: ignore[no-untyped-def]
def _message(self: Any, message: Message) -> Verdict: ...
def _recipient(self: Any, recipient: Recipient) -> Verdict: ...
def _no_type(self: Any, session) -> Verdict: ...  # type: ignore[no-untyped-def]
def _other(self: Any, session: str) -> Verdict: ...
def _either(self: Any, finding: Spf | Rate) -> Verdict: ...
def _by_keyword(self: Any, *, spf: Spf) -> Verdict: ...
async def _async(self: Any, session: Session) -> Verdict: ...


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("on_recipient", _plain, "on_recipient is no hook; hooks are on_connect, on_helo"),
        ("on_mail", _no_return, "must be annotated to return Verdict"),
        ("on_data", _message, "Message is not known at stage data"),
        ("on_message", _recipient, "Recipient is not known at stage message"),
        ("on_mail", _recipient, "Recipient is not known at stage mail"),
        ("on_mail", _no_type, "parameter session has no annotated type"),
        ("on_mail", _other, "str is neither an input nor a Finding"),
        ("on_mail", _either, "parameter finding has no annotated type"),
        ("on_mail", _by_keyword, "parameter spf cannot be given by position"),
        ("on_mail", _async, "must not be async: policies are pure"),
    ],
)
def test_a_wrong_hook_fails_when_the_class_is_made(name: str, method: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        type("Wrong", (Policy,), {name: method})


class Narrow(Policy):
    """Asked at one of its stages."""

    name = "narrow"

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self.narrow({Stage.RCPT})

    def on_mail(self) -> Verdict:
        return PROCEED

    def on_rcpt(self) -> Verdict:
        return PROCEED


def test_an_instance_may_need_fewer_of_its_hooks() -> None:
    assert list(Narrow(PolicyOptions()).hooks) == [Stage.RCPT]
    assert list(Narrow.hooks) == [Stage.MAIL, Stage.RCPT]
    assert Bench().judge(Narrow) == PROCEED
    with pytest.raises(LookupError, match="no hook at mail"):
        Bench().judge(Narrow, stage=Stage.MAIL)


def test_a_policy_says_which_of_its_clauses_match_to_who_watches_it() -> None:
    class Parts(Policy):
        name = "parts"

        def on_mail(self) -> Verdict:
            self.matched(("parts", 1))
            return PROCEED

    policy, seen = Parts(PolicyOptions()), []
    assert policy.clauses() == ()
    assert policy.on_mail() == PROCEED
    policy.watch(seen.append)
    assert policy.on_mail() == PROCEED
    assert seen == [("parts", 1)]
