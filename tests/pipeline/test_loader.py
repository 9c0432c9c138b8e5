"""Loading: entries to a pipeline, problems with their place, entry points."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from gateway.mail.session import Session
from gateway.pipeline.catalog import PLUGINS, POLICIES
from gateway.pipeline.loader import Catalog, Pipeline, PipelineError, load
from gateway.pipeline.plan import OnError
from gateway.sdk import PROCEED, Message, OptionError, Plugin, Recipient, Stage, Transaction, finds, quarantine
from tests.pipeline.offered import ColourPlugin
from tests.pipeline.quick import run
from tests.pipeline.setting import A, B, C, Flow, finder, hook, make, plugin, policy, proceeding, services


def offered(name: str, value: str, group: str = PLUGINS) -> EntryPoint:
    return EntryPoint(name, f"tests.pipeline.offered:{value}", group)


KNOWN = Catalog(
    {
        "colour": offered("colour", "ColourPlugin"),
        "grumpy": offered("grumpy", "Grumpy"),
        "wrong": offered("wrong", "not_a_class"),
        "absent": offered("absent", "NoSuchThing"),
    },
    {"colour-blind": offered("colour-blind", "ColourBlind", POLICIES)},
)
COLOUR = {"colour": {"shades": {"red": 1}}}


def loaded(*entries: Any) -> Pipeline:
    return load("default", entries, services(), known=KNOWN)


def problems(*entries: Any) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(PipelineError) as caught:
        loaded(*entries)
    assert (caught.value.path, caught.value.message) == (
        caught.value.problems[0].path,
        caught.value.problems[0].message,
    )
    return [(problem.path, problem.message) for problem in caught.value.problems]


def test_an_entry_is_a_name_or_a_mapping_with_keys_beside_the_name() -> None:
    pipeline = loaded(
        {**COLOUR, "timeout": "2s", "on_error": "proceed", "shadow": True}, "colour-blind", {"grumpy": None}
    )
    first, second, third = pipeline.entries
    assert (first.name, first.timeout, first.on_error, first.shadow) == ("colour", 2.0, OnError.PROCEED, True)
    assert isinstance(first.plugin, ColourPlugin)
    assert first.plugin.options.shades == {"red": 1}
    assert first.policy is not None and first.policy.options is first.plugin.options
    assert (second.plugin, second.policy_name) == (None, "colour-blind")
    assert (third.timeout, third.on_error, third.shadow, third.policy) == (10.0, OnError.DEFER, False, None)


def test_a_plugin_listed_twice_has_two_names_in_the_record() -> None:
    assert [entry.name for entry in loaded(COLOUR, COLOUR, COLOUR).entries] == ["colour", "colour#2", "colour#3"]


@pytest.mark.parametrize(
    ("entry", "path", "message"),
    [
        ("color", (0,), "no plugin or policy is called color; did you mean colour?"),
        ({"colr": {}}, (0, "colr"), "no plugin or policy is called colr; did you mean colour?"),
        (7, (0,), "expected the name of a plugin or policy, or a mapping with one"),
        ({"shadow": True}, (0,), "names no plugin or policy"),
        ({**COLOUR, "grumpy": {}}, (0, "grumpy"), "this has colour already"),
        ({**COLOUR, "timeot": "5s"}, (0, "timeot"), "timeout"),
        ({"colour": {}}, (0, "colour", "shades"), "shades must be given"),
        ({"colour": None}, (0, "colour", "shades"), "shades must be given"),
        ({"colour": []}, (0, "colour"), "expected options: a mapping, or nothing"),
        ({"colour": {"shades": {"red": "x"}}}, (0, "colour", "shades", "red"), "valid integer"),
        ({"colour": {"shades": {}, "shade": 1}}, (0, "colour", "shade"), "did you mean shades?"),
        ({"colour": {"shades": {}, "wait": 5}}, (0, "colour", "wait"), "expected a duration with its unit"),
        ({**COLOUR, "timeout": 5}, (0, "timeout"), "expected a duration with its unit"),
        ({**COLOUR, "timeout": 0}, (0, "timeout"), "more than 0"),
        ({**COLOUR, "timeout": "11m"}, (0, "timeout"), "at most 10m"),
        ({**COLOUR, "on_error": "accept"}, (0, "on_error"), "expected proceed, defer, reject"),
        ({**COLOUR, "on_error": ["defer"]}, (0, "on_error"), "expected proceed, defer, reject"),
        ({**COLOUR, "shadow": "yes"}, (0, "shadow"), "expected true or false"),
        ({**COLOUR, "policy": "colour-bind"}, (0, "policy"), "did you mean colour-blind?"),
        ({**COLOUR, "policy": "colour"}, (0, "policy"), "colour is a plugin, not a policy"),
        ({**COLOUR, "policy": None}, (0, "policy"), "expected the name of a policy"),
        ({**COLOUR, "policy": {"colour-blind": {"x": 1}}}, (0, "policy", "colour-blind", "x"), "unknown option"),
        ({"colour-blind": {}, "timeout": "5s"}, (0, "timeout"), "colour-blind is a policy, and timeout is for plugins"),
        ("wrong", (0,), "wrong cannot be loaded: TypeError"),
        ({"absent": {}}, (0, "absent"), "absent cannot be loaded: AttributeError"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said_with_its_place(
    entry: Any, path: tuple[str | int, ...], message: str
) -> None:
    ((where, why),) = problems(entry)
    assert where == path
    assert message in why


def test_every_problem_is_said_at_once() -> None:
    found = problems({"colour": {"shades": {"red": "x", "blue": "y"}, "odd": 1}}, "grumpy", "nobody")
    assert [path for path, _ in found] == [
        (0, "colour", "shades", "red"),
        (0, "colour", "shades", "blue"),
        (0, "colour", "odd"),
        (2,),
    ]


def test_a_policy_is_told_which_plugin_would_give_what_it_needs() -> None:
    ((path, message),) = problems("grumpy", "colour-blind")
    assert path == (1,)
    assert (
        message == "policy colour-blind needs Colour, which no plugin of this pipeline gives; colour would, if listed"
    )
    ((path, _),) = problems({"grumpy": {}, "policy": "colour-blind"})
    assert path == (0, "policy")


def test_the_default_policy_can_be_replaced_or_dropped() -> None:
    (entry,) = loaded({**COLOUR, "policy": "colour-blind"}).entries
    assert entry.policy_name == "colour-blind"
    (entry,) = loaded({**COLOUR, "policy": {"colour-blind": {}}}).entries
    assert entry.policy_name == "colour-blind"
    (entry,) = loaded({**COLOUR, "policy": "none"}).entries
    assert entry.policy is None


def wrong(*messages: str) -> OptionError:
    error = OptionError()
    for message in messages:
        error.add(("shades",), message)
    return error


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (wrong("is wrong"), "is wrong"),
        (wrong(), "does not say why"),
        (KeyError("x"), "choosy cannot be made: KeyError"),
    ],
)
def test_a_default_policy_that_does_not_take_the_options_is_said_with_its_place(raised: Exception, said: str) -> None:
    class Choosy(proceeding("choosy", Stage.MAIL, A)):  # type: ignore[misc]
        def __init__(self, options: Any) -> None:
            raise raised

    with pytest.raises(PipelineError, match=said) as caught:
        make([{"asks": None}], plugin("asks", finder(Stage.MAIL, A, [Session]), policy=Choosy))
    assert caught.value.path[:2] == (0, "asks")


def test_findings_that_depend_on_each_other_in_a_circle_are_refused() -> None:
    things = [
        plugin("one", finder(Stage.MAIL, A, [B])),
        plugin("two", finder(Stage.MAIL, B, [C])),
        plugin("three", finder(Stage.MAIL, C, [A])),
    ]
    with pytest.raises(PipelineError, match=r"circle: A \(one\) -> B \(two\) -> C \(three\) -> A \(one\)") as caught:
        make(["one", "two", "three"], *things, policy("q"))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("entries", "things", "message"),
    [
        (
            ["q", "act"],
            [plugin("act", finder(Stage.MAIL, A, [Session], does=True)), proceeding("q", Stage.MAIL, A)],
            "policy q needs A at stage mail, which act gives only when its turn has come; list it before",
        ),
        (
            ["p", "q"],
            [plugin("p", finder(Stage.DATA, A, [Session])), proceeding("q", Stage.MAIL, A)],
            "policy q needs A at stage mail, which p gives at stage data only",
        ),
        (
            ["p", "q"],
            [plugin("p", finder(Stage.RCPT, A, [Recipient])), proceeding("q", Stage.MESSAGE, A)],
            "policy q needs A at stage message, which p has once per recipient, so it is known at rcpt only",
        ),
        (
            ["p", "q"],
            [plugin("p", finder(Stage.RCPT, A, [Recipient])), plugin("q", finder(Stage.MESSAGE, B, [A, Message]))],
            "q.find0 needs one recipient, and at message there may be many",
        ),
        (
            ["act", "p"],
            [
                plugin("act", finder(Stage.MAIL, B, [A], does=True)),
                plugin("p", finder(Stage.RCPT, A, [Transaction])),
            ],
            "act.find0 needs A at stage mail, which p gives at stage rcpt only",
        ),
        (
            ["p"],
            [plugin("p", finder(Stage.MAIL, B, [A]))],
            "p.find0 needs A, which no plugin of this pipeline gives",
        ),
    ],
)
def test_a_finding_that_cannot_be_there_in_time_is_refused(entries: list[str], things: list[Any], message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        make(entries, *things)
    assert [p.message for p in caught.value.problems] == [message]


def _served(pipeline: Pipeline, entry: str) -> tuple[str, ...]:
    return next(row.needs for row in pipeline.table() if row.entry == entry and row.kind == "policy")


def test_a_finding_comes_from_the_own_entry_else_the_nearest_before_else_the_first_after() -> None:
    gives = [plugin(f"p{i}", finder(Stage.CONNECT, A, [Session])) for i in range(5)]
    own = plugin("own", finder(Stage.CONNECT, A, [Session]), policy=proceeding("own", Stage.MAIL, A))
    asks = proceeding("q", Stage.MAIL, A)
    assert _served(make(["p0", "p1", "own", "p2"], *gives, own), "own") == ("A from own",)
    assert _served(make(["p0", "p1", "q", "p2"], *gives, asks), "q") == ("A from p1",)
    assert _served(make(["q", "p2", "p3"], *gives, asks), "q") == ("A from p2",)


def test_an_instance_that_needs_less_is_planned_with_less() -> None:
    class Narrow(Plugin):
        name = "narrow"

        def __init__(self, options: Any, services: Any) -> None:
            super().__init__(options, services)
            self.narrow({Stage.MAIL}, without={B})

        @finds(Stage.CONNECT)
        async def early(self, session: Session) -> A:
            return A()

        @finds(Stage.MAIL)
        async def late(self, transaction: Transaction, b: B | None) -> C:
            return C(0 if b is None else b.value)

    judge = policy("judge", hook(Stage.MAIL, [C], lambda c: quarantine(str(c.value))))
    giver = plugin("giver", finder(Stage.CONNECT, B, [Session]))

    async def mailed() -> str:
        flow = Flow(["giver", "narrow", "judge"], Narrow, giver, judge)
        rows = [(row.stage, row.entry, row.needs) for row in flow.pipeline.table()]
        assert rows == [("connect", "giver", ()), ("mail", "narrow", ()), ("mail", "judge", ("C from narrow",))]
        await flow.connect()
        decision = await flow.mail()
        await flow.close()
        return decision.verdict.reason

    assert run(mailed()) == "0", "it got None where B stands ready"


def test_of_one_plugins_finders_the_latest_that_has_come_serves() -> None:
    seen: list[Any] = []

    def told(value: int) -> Any:
        async def work(*given: Any) -> A:
            return A(value)

        return work

    counting = plugin(
        "count",
        finder(Stage.CONNECT, A, [Session], told(1), does=True),
        finder(Stage.RCPT, A, [Recipient], told(2), does=True),
        policy=policy(
            "count",
            hook(Stage.CONNECT, [A], lambda a: seen.append(("connect", a.value)) or PROCEED),
            hook(Stage.MAIL, [A], lambda a: seen.append(("mail", a.value)) or PROCEED),
            hook(Stage.RCPT, [A], lambda a: seen.append(("rcpt", a.value)) or PROCEED),
            hook(Stage.MESSAGE, [A], lambda a: seen.append(("message", a.value)) or PROCEED),
        ),
    )

    async def scenario() -> None:
        flow = Flow(["count"], counting)
        await flow.whole()
        await flow.close()

    run(scenario())
    assert seen == [("connect", 1), ("mail", 1), ("rcpt", 2), ("message", 1)]


def test_the_table_shows_stage_by_stage_who_is_asked_what() -> None:
    rows = [row.to_json() for row in loaded({**COLOUR, "shadow": True}, "colour-blind").table()]
    shared = {"order": 1, "entry": "colour", "shadow": True, "enforced": "0%"}
    assert json.loads(json.dumps(rows)) == [
        {
            **shared,
            "stage": "connect",
            "kind": "finds",
            "name": "Colour",
            "needs": [],
            "on_error": "defer",
            "timeout": 10.0,
        },
        {
            **shared,
            "stage": "connect",
            "kind": "policy",
            "name": "colour",
            "needs": ["Colour from colour"],
            "on_error": None,
            "timeout": None,
        },
        {
            "stage": "helo",
            "order": 2,
            "entry": "colour-blind",
            "kind": "policy",
            "name": "colour-blind",
            "needs": ["Colour from colour"],
            "on_error": None,
            "timeout": None,
            "shadow": False,
            "enforced": "100%",
        },
    ]


def test_a_plugin_that_does_not_start_closes_those_before_it() -> None:
    ColourPlugin.closed.clear()
    with pytest.raises(PipelineError) as caught:
        run(loaded(COLOUR, {"grumpy": {}}).start())
    assert (caught.value.path, caught.value.message) == ((1, "grumpy"), "grumpy does not start: OSError: no licence")
    assert ColourPlugin.closed == ["colour"]


def test_the_catalog_lists_what_is_installed_and_why_something_cannot_be_loaded() -> None:
    listed = {item.name: item for item in KNOWN.plugins()}
    assert (listed["colour"].module, listed["colour"].summary, listed["colour"].problem) == (
        "tests.pipeline.offered",
        "Finds out the client's colour.",
        "",
    )
    assert listed["wrong"].problem == "TypeError: tests.pipeline.offered:not_a_class is no Plugin"
    assert listed["absent"].problem.startswith("AttributeError")
    assert [(item.name, item.kind) for item in KNOWN.policies()] == [("colour-blind", "policy")]


def test_our_own_plugins_and_policies_are_found_by_entry_point() -> None:
    catalog = Catalog.installed()
    assert {"dnsbl", "ratelimit", "recipient", "spf", "helo-identity", "own-domain-sender"} <= set(catalog.names)
    listed = [*catalog.plugins(), *catalog.policies()]
    assert [item.name for item in listed if item.problem or not item.summary] == []


def test_a_plugin_and_a_policy_cannot_share_a_name() -> None:
    with pytest.raises(PipelineError, match="colour is the name of a plugin and of a policy"):
        Catalog({"colour": ColourPlugin}, {"colour": offered("colour", "ColourBlind", POLICIES)})


def test_two_distributions_cannot_offer_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [offered("colour", "ColourPlugin"), offered("colour", "Grumpy")]
    monkeypatch.setattr("gateway.pipeline.catalog.entry_points", lambda group: points if group == PLUGINS else [])
    with pytest.raises(PipelineError, match="colour is offered twice"):
        Catalog.installed()
    points[1] = points[0]
    assert Catalog.installed().names == ("colour",)
