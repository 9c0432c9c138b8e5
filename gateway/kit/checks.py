"""What holds for every policy, put to the test with whatever may come.

def test_my_policy_is_one() -> None:
    check_policy(MyPolicy, {"limit": 3})
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.kit.purity import watched
from gateway.kit.strategies import findings, hostile_messages, messages, sessions, transactions
from gateway.mail.edit import ReplaceBody, edit_envelope
from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.message import Content
from gateway.mail.reply import Reply
from gateway.mail.session import Session
from gateway.sdk.findings import Finding
from gateway.sdk.plugin import Plugin
from gateway.sdk.policy import Given, Hook, Policy
from gateway.sdk.stage import Message, Stage, Transaction
from gateway.sdk.testing import Options, make_message, parse_options, policy_class
from gateway.sdk.verdict import Verdict

__all__ = [
    "check_policy",
]

_LINE_OCTETS: Final = 512
"""RFC 5321 section 4.5.3.1.5, line end included."""

Kinds = Mapping[type[Finding], st.SearchStrategy[Any]]


def check_policy(
    policy: type[Policy] | type[Plugin] | str,
    options: Options = None,
    *,
    found: Kinds | Sequence[type[Finding]] = (),
    examples: int = 100,
) -> None:
    """Ask every hook of the policy about this many made-up sessions, transactions, messages and findings.

    It must not raise, must answer the same to the same question, whatever it was asked before, and must touch neither
    clock nor chance nor files nor network. Replies must be such as go over the wire unchanged, edits such as can be
    made, and all of it such as a record can hold.

    `found` are the findings that the pipeline has for a policy whose hooks depend on that (`Policy.wire`), or
    strategies in place of `gateway.kit.strategies.findings`. What is optional is sometimes missing.

    Raises AssertionError, with the question that it failed at.
    """
    cls = policy_class(policy)
    read = cls.Options.model_validate(parse_options(options, sole=cls.Options.sole))
    kinds = dict(found) if isinstance(found, Mapping) else {kind: findings(kind) for kind in found}

    def make() -> Policy:
        made = cls(read)
        wanted = _wanted(made)
        made.wire(Given(dict.fromkeys([*kinds, *wanted], tuple(Stage)), lambda kind: ()))
        return made

    asked_before = make()
    assert asked_before.hooks, f"{cls.__qualname__} is asked nothing; name in `found` what its pipeline finds"
    for kind in _wanted(asked_before) - kinds.keys():
        kinds[kind] = findings(kind)
    for hook in asked_before.hooks.values():
        _ask(hook, asked_before, make, kinds, examples)


def _wanted(policy: Policy) -> set[type[Finding]]:
    return {kind for hook in policy.hooks.values() for kind in hook.inputs if issubclass(kind, Finding)}


def _ask(hook: Hook, asked_before: Policy, make: Callable[[], Policy], kinds: Kinds, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_inputs(hook, kinds))
    def holds(inputs: list[Any]) -> None:
        _check(hook, asked_before, make(), inputs)

    holds()


@st.composite
def _inputs(draw: st.DrawFn, hook: Hook, kinds: Kinds) -> list[Any]:
    """What a hook is given, of one session. Nothing is made up that it does not take."""
    of: dict[type, st.SearchStrategy[Any]] = dict(kinds)
    if {Session, Transaction, Recipient} & set(hook.inputs):
        session = draw(sessions())
        of[Session] = st.just(session)
        if {Transaction, Recipient} & set(hook.inputs):
            transaction = draw(transactions(st.just(session)))
            of[Transaction], of[Recipient] = st.just(transaction), st.sampled_from(transaction.recipients)
    of[Message] = (messages() | hostile_messages()).map(make_message)
    out: list[Any] = []
    for kind, optional in zip(hook.inputs, hook.optional, strict=True):
        if optional and draw(st.booleans()):
            out.append(None)
        else:
            out.append(draw(of[kind]))
    return out


def _check(hook: Hook, one: Policy, other: Policy, inputs: list[Any]) -> None:
    where = f"{type(one).__qualname__}.{hook.name}"
    try:
        verdict = getattr(one, hook.name)(*inputs)
        again, impure = watched(getattr(one, hook.name), *inputs)
        fresh = getattr(other, hook.name)(*inputs)
    except Exception as error:
        raise AssertionError(f"{where} raised {type(error).__name__}: {error}") from error
    assert isinstance(verdict, Verdict), f"{where} gave {verdict!r} and no verdict"
    assert not impure, f"{where} called {', '.join(impure)}: a policy has nothing but what it is given"
    assert _plain(again) == _plain(verdict), f"{where} said {verdict}, and asked the same again, {again}"
    assert _plain(fresh) == _plain(verdict), f"{where} said {verdict}; one that was asked nothing before says {fresh}"
    if verdict.reply is not None:
        _check_reply(where, verdict.reply)
    assert not verdict.recipients or hook.stage is Stage.MESSAGE, f"{where} names recipients, which only `message` can"
    json.dumps(verdict.to_json(), ensure_ascii=False).encode("utf-8", "surrogatepass")
    _make_edits(verdict, inputs)


def _check_reply(where: str, reply: Reply) -> None:
    """The text must be such that nothing of it is cut or replaced on its way to the client."""
    for line in reply.text.split("\n"):
        said = f"{reply.code} {reply.status} {line}\r\n"
        assert line.isascii() and line.isprintable(), f"{where}: the reply {line!r} is not printable ASCII"
        assert len(said) <= _LINE_OCTETS, f"{where}: the reply has a line of {len(said)} octets"
    heard = b"".join(
        line[4:].removeprefix(f"{reply.status} ".encode() if reply.status else b"")
        for line in reply.wire().splitlines(True)
    )
    assert heard.decode().replace("\r\n", "\n").removesuffix("\n") == reply.text, f"{where}: the reply is cut"


def _make_edits(verdict: Verdict, inputs: list[Any]) -> None:
    message = next((given for given in inputs if isinstance(given, Message)), None) or make_message()
    message.edited(verdict.edits)
    transaction = next((given for given in inputs if isinstance(given, Transaction)), None)
    if transaction is not None:
        edit_envelope(Envelope(transaction.sender, transaction.recipients, transaction.parameters), verdict.edits)


def _plain(verdict: Any) -> Any:
    """A verdict that can be compared: with the octets of new bodies in place of whatever gives them."""
    if not isinstance(verdict, Verdict):
        return verdict
    edits = [_octets(edit.body) if isinstance(edit, ReplaceBody) else edit for edit in verdict.edits]
    return dataclasses.replace(verdict, edits=()), edits


def _octets(content: Content) -> bytes:
    async def collect() -> bytes:
        return b"".join([block async for block in content.blocks()])

    return asyncio.run(collect())
