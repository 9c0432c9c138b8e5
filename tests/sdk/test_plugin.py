"""Plugins: what is read from the class, and what is refused when it is made."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.sdk import (
    PROCEED,
    Finding,
    Geo,
    Message,
    Plugin,
    PluginOptions,
    Policy,
    Rate,
    Recipient,
    Session,
    Spf,
    SpfResult,
    Stage,
    Transaction,
    Verdict,
    acts,
    finds,
)
from gateway.sdk.plugin import Finder
from gateway.sdk.testing import Bench


def test_finders_are_read_from_annotations_in_stage_order() -> None:
    class Everything(Plugin):
        name = "everything"

        @acts(Stage.MESSAGE)
        async def scan(self, message: Message, spf: Spf) -> Rate: ...

        @finds(Stage.CONNECT)
        async def look(self, session: Session) -> Spf: ...

        async def own_method(self, anything: list[int]) -> None: ...

    assert Everything.finders == (
        Finder("look", Stage.CONNECT, False, Spf, (Session,), (False,)),
        Finder("scan", Stage.MESSAGE, True, Rate, (Message, Spf), (False, False)),
    )


def test_finders_are_inherited() -> None:
    class Base(Plugin):
        @finds(Stage.CONNECT)
        async def look(self, session: Session) -> Spf: ...

    class Child(Base):
        name = "child"

    assert [f.method for f in Child.finders] == ["look"]


async def _mail_at_connect(self: Any, txn: Transaction) -> Spf: ...
async def _recipient_at_data(self: Any, recipient: Recipient) -> Spf: ...
async def _no_return(self: Any, session: Session): ...  # type: ignore[no-untyped-def]
async def _wrong_return(self: Any, session: Session) -> str: ...
async def _no_type(self: Any, session) -> Spf: ...  # type: ignore[no-untyped-def]
async def _wrong_input(self: Any, session: int) -> Spf: ...
async def _by_keyword(self: Any, *, session: Session) -> Spf: ...
async def _any_number(self: Any, *session: Session) -> Spf: ...
def _not_async(self: Any, session: Session) -> Spf: ...


@pytest.mark.parametrize(
    ("stage", "method", "message"),
    [
        (Stage.CONNECT, _mail_at_connect, "Transaction is not known at stage connect"),
        (Stage.DATA, _recipient_at_data, "Recipient is not known at stage data"),
        (Stage.CONNECT, _no_return, "must be annotated to return a Finding"),
        (Stage.CONNECT, _wrong_return, "must be annotated to return a Finding"),
        (Stage.CONNECT, _no_type, "parameter session has no annotated type"),
        (Stage.CONNECT, _wrong_input, "int is neither an input nor a Finding"),
        (Stage.CONNECT, _by_keyword, "parameter session cannot be given by position"),
        (Stage.CONNECT, _any_number, "parameter session cannot be given by position"),
        (Stage.CONNECT, _not_async, "must be an async method"),
    ],
)
def test_a_wrong_signature_fails_when_the_class_is_made(stage: Stage, method: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        type("Wrong", (Plugin,), {"name": "wrong", "look": finds(stage)(method)})


def test_a_default_policy_with_other_options_fails_when_the_class_is_made() -> None:
    class Own(PluginOptions):
        limit: int = 1

    class Judge(Policy):
        Options = Own

        def on_connect(self, session: Session) -> Verdict:
            return PROCEED

    class Plain(Policy):
        def on_connect(self, session: Session) -> Verdict:
            return PROCEED

    assert type("Right", (Plugin,), {"Options": Own, "policy": Judge}).finders == ()
    assert type("Indifferent", (Plugin,), {"Options": Own, "policy": Plain}).finders == ()
    with pytest.raises(TypeError, match="its policy takes other options than PluginOptions"):
        type("Wrong", (Plugin,), {"policy": Judge})


def test_a_finding_that_is_not_frozen_cannot_be_defined() -> None:
    import dataclasses

    with pytest.raises(TypeError, match="non-frozen"):

        @dataclasses.dataclass
        class Loose(Finding):
            value: int


class Choosy(Plugin):
    """Does what its option says."""

    name = "choosy"

    def __init__(self, options: PluginOptions, services: Any) -> None:
        super().__init__(options, services)
        self.narrow({Stage.MAIL}, without={Geo})

    @finds(Stage.CONNECT)
    async def early(self, session: Session) -> Rate:
        return Rate(True, "", 0, 0)

    @finds(Stage.MAIL)
    async def late(self, session: Session, geo: Geo | None, spf: Spf) -> Rate:
        return Rate(True, "none" if geo is None else geo.country, 0, 0)


def test_an_instance_may_need_fewer_of_its_finders_and_of_its_optional_inputs() -> None:
    made = Choosy(PluginOptions(), None)
    assert made.finders == (Finder("late", Stage.MAIL, False, Rate, (Session, type(None), Spf), (False, True, False)),)
    assert [f.method for f in Choosy.finders] == ["early", "late"], "others are not concerned"


def test_the_bench_runs_what_the_instance_needs() -> None:
    findings = [Geo("NL"), Spf(SpfResult.NONE, "", SpfResult.NONE, "")]
    assert Bench().find(Choosy, findings=findings) == Rate(True, "none", 0, 0)
    with pytest.raises(LookupError, match="nothing at connect with these options"):
        Bench().find(Choosy, stage=Stage.CONNECT)
