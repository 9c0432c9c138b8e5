"""What happens when something fails, or takes long: failure policies, and the client's patience."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from gateway.app.lint import codes
from gateway.app.lint.scene import Judged, Scene, kinds, leads_to
from gateway.pipeline.plan import Entry, Node, OnError, Scope, StagePlan
from gateway.sdk.authentication import Dmarc
from gateway.sdk.contents import VirusScan
from gateway.sdk.endpoint import Endpoint
from gateway.sdk.findings import Finding, RecipientStatus
from gateway.sdk.lint import Path, Remark
from gateway.sdk.options import format_duration
from gateway.sdk.stage import ORDER, Stage

_ONLY: Final[dict[type[Finding], str]] = {
    VirusScan: "malware comes in unscanned",
    Dmarc: "mail with a forged From comes in",
    RecipientStatus: "mail to recipients that do not exist comes in",
}
"""What passes while the only entry that finds it fails."""

PATIENCE: Final = {
    Stage.CONNECT: 300.0,
    Stage.HELO: 300.0,
    Stage.MAIL: 300.0,
    Stage.RCPT: 300.0,
    Stage.DATA: 120.0,
    Stage.MESSAGE: 600.0,
}
"""Seconds that a client must wait, at least (RFC 5321 section 4.5.3.2; for EHLO, as for other commands)."""

_REPLY: Final = {
    Stage.CONNECT: "the greeting",
    Stage.HELO: "the reply to EHLO",
    Stage.MAIL: "the reply to MAIL",
    Stage.RCPT: "the reply to RCPT",
    Stage.DATA: "the reply to DATA",
    Stage.MESSAGE: "the reply to the final dot",
}
_COMMAND: Final = 300.0
"""RFC 5321 section 4.5.3.2.7."""


def remarks(scene: Scene) -> Iterator[Remark]:
    """All that is about failure and time."""
    for judged in scene.pipelines.values():
        for entry in judged.plan.entries:
            if entry.plugin is not None:
                yield from _policy(judged, entry)
                yield from _timeouts(judged, entry)
        yield from _only(judged)
    yield from _patience(scene)
    if scene.config.timeouts.command < _COMMAND:
        yield Remark(
            codes.HASTY,
            ("timeouts", "command"),
            f"clients get {format_duration(scene.config.timeouts.command)} for the next command, and 5m is asked for",
            "a client that looks up its own next recipient in between is cut off, and begins anew later",
            "write 5m or more (RFC 5321 section 4.5.3.2.7)",
        )


# Failure


def _policy(judged: Judged, entry: Entry) -> Iterator[Remark]:
    if entry.shadow:
        return
    if entry.on_error is OnError.REJECT:
        yield Remark(
            codes.REFUSED_FOR_GOOD,
            judged.path_of(entry, "on_error"),
            f"when {entry.name} fails, mail is refused for good",
            f"{entry.name} is down for a minute, and what <anna@example.com> wrote comes back to her as undeliverable",
            "write on_error: defer: the client tries again, and nothing is lost",
        )
    service = _service(entry)
    if service and not judged.says(entry, "on_error"):
        yield Remark(
            codes.NO_POLICY,
            judged.path_of(entry),
            f"{entry.name} asks {service}, and on_error is not given: then it is defer",
            f"{service} is down, and every message is deferred until it is back",
            "write on_error: defer if that is meant, or proceed to go on without it",
        )


def _service(entry: Entry) -> str:
    """The service that an entry asks, as its options name it; empty for none."""
    options = entry.plugin.options if entry.plugin else None
    values = (getattr(options, name) for name in type(options).model_fields) if options is not None else ()
    return next((str(value) for value in values if isinstance(value, Endpoint)), "")


def _only(judged: Judged) -> Iterator[Remark]:
    for kind, passes in _ONLY.items():
        givers = [entry for entry in judged.enforced if kind in kinds(entry) and entry.policy is not None]
        if len(givers) != 1 or givers[0].on_error is not OnError.PROCEED:
            continue
        (entry,) = givers
        yield Remark(
            codes.UNSCANNED if kind is VirusScan else codes.UNPROTECTED,
            judged.path_of(entry, "on_error"),
            f"{entry.name} is the only entry that finds {kind.__name__}, and when it fails mail proceeds",
            f"while {entry.name} does not answer, {passes}, from any client",
            "write on_error: defer",
        )


# Time


def _waited_at(judged: Judged, entry: Entry) -> Iterator[tuple[Node, Stage]]:
    """The entry's look-ups and actions, each with the stages that wait for it."""
    for stage in ORDER:
        for step in judged.plan.stages[stage].steps:
            sources = [source for source, _ in step.question.sources] if step.question else []
            for node in {n for source in (*step.acts, *sources) for n in leads_to(source)}:
                if node.entry is entry:
                    yield node, stage


def _timeouts(judged: Judged, entry: Entry) -> Iterator[Remark]:
    assert entry.plugin is not None
    patience = entry.plugin.patience()
    if patience >= entry.timeout:
        key = ("timeout",) if judged.says(entry, "timeout") else ()
        yield Remark(
            codes.TIMEOUT_FIRST,
            judged.path_of(entry, *key),
            f"{entry.name} itself waits for {format_duration(patience)}, and its entry's timeout is "
            f"{format_duration(entry.timeout)}",
            f"whoever it asks does not answer, and on_error ({entry.on_error}) decides instead of {entry.name}",
            f"write a timeout of more than {format_duration(patience)}, or a shorter wait in its options",
        )
    if not judged.says(entry, "timeout"):
        return
    rooms = [_room(judged, node, stage) for node, stage in _waited_at(judged, entry)]
    if rooms and (room := max(rooms)) < entry.timeout:
        yield Remark(
            codes.NEVER_SO_LONG,
            judged.path_of(entry, "timeout"),
            f"{entry.name} has {format_duration(entry.timeout)}, and its stage is over after {format_duration(room)}",
            f"a message for which {entry.name} takes longer ends by on_error ({entry.on_error}) after "
            f"{format_duration(room)} all the same",
            "raise the stage under `deadlines` too, or lower the timeout",
        )


def _room(judged: Judged, node: Node, stage: Stage) -> float:
    """Seconds a look-up has until `stage`, which waits for it, is over. Endless over rcpt, which may come often."""
    first, last = ORDER.index(node.stage), ORDER.index(stage)
    between = ORDER[first : last + 1]
    if Stage.RCPT in between and len(between) > 1 and node.scope is not Scope.RECIPIENT:
        return float("inf")
    return sum(judged.plan.stages[s].deadline for s in between)


def longest(plan: StagePlan) -> float:
    """Seconds that a stage may take: look-ups beside each other, actions one after the other, all in its deadline."""
    acted: dict[Node, float] = {}

    def end(source: int | Node) -> float:
        if not isinstance(source, Node):
            return 0.0
        if source.finder.acts:
            return acted.get(source, 0.0)
        return max(map(end, source.sources), default=0.0) + source.entry.timeout

    now = 0.0
    for step in plan.steps:
        for act in step.acts:
            now = acted[act] = max([now, *map(end, act.sources)]) + act.entry.timeout
        if step.question:
            now = max([now, *(end(source) for source, _ in step.question.sources)])
    return min(now, plan.deadline)


def _patience(scene: Scene) -> Iterator[Remark]:
    for i, listener in enumerate(scene.config.listeners):
        own = scene.pipelines[listener.pipeline]
        others = {d.pipeline: scene.pipelines[d.pipeline] for d in scene.config.domains.values() if d.pipeline}
        others.pop(own.name, None)
        for stage, needed, path, why in _replies(scene.config, own, list(others.values())):
            limit = PATIENCE[stage]
            if needed <= limit / 2:
                continue
            yield Remark(
                codes.TOO_SLOW if needed > limit else codes.SLOW,
                path,
                f"{_REPLY[stage]} at listeners[{i}] may take {format_duration(needed)}{why}; clients must wait for "
                f"{format_duration(limit)} (RFC 5321 section 4.5.3.2), and some do not",
                _impatient(stage),
                f"lower deadlines.{stage} or the timeouts of the entries that are asked there",
            )


def _impatient(stage: Stage) -> str:
    if stage is Stage.MESSAGE:
        return "the client hangs up, we store the message, and it sends it again: anna gets it twice, or ten times"
    return "the client hangs up and tries again later, which ends in the same way: anna's mail never comes"


def _replies(config: Any, own: Judged, others: list[Judged]) -> Iterator[tuple[Stage, float, Path, str]]:
    """Each reply: how long it may take in all, where that is said, and why it is more than one stage."""
    for stage in PATIENCE:
        deadline = ("deadlines", stage.value)
        path: Path = deadline if config.written(deadline) else own.path
        alone = {judged.name: longest(judged.plan.stages[stage]) for judged in (own, *others)}
        needed, why = (max(alone.values()) if stage in _PER_DOMAIN else alone[own.name]), ""
        if stage is Stage.RCPT and others:
            needed, why = max((needed, why), *((_catching_up(o), _CAUGHT_UP.format(o.name)) for o in others))
        elif stage is Stage.DATA and others and config.split == "copies":
            needed, why = sum(alone.values()), f" (pipelines {', '.join(alone)} are asked one after the other)"
        yield stage, needed, path, why


_PER_DOMAIN: Final = (Stage.RCPT, Stage.DATA, Stage.MESSAGE)
_CAUGHT_UP: Final = " (where pipeline {} begins, with what it missed from connect on)"


def _catching_up(judged: Judged) -> float:
    """A domain's own pipeline is asked at its first recipient, and then about all that came before, too."""
    stages = (Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.RCPT)
    return sum(longest(judged.plan.stages[stage]) for stage in stages)
