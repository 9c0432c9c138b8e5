"""Does something that accepts skip what should be asked, and is an entry asked at all?

`accept` ends its stage and no other: at `rcpt` it leaves out what comes later there, and everything at `message` is
asked all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gateway.app.lint import codes
from gateway.app.lint.scene import Judged, Scene, asked, kinds, leads_to
from gateway.pipeline.plan import Entry, Step
from gateway.sdk.authentication import Arc, Dkim, Dmarc, Spf
from gateway.sdk.findings import Finding, RecipientStatus
from gateway.sdk.lint import Remark, Trust, Way
from gateway.sdk.stage import Stage
from gateway.sdk.verdict import Action

AUTHENTICATION: Final = (Spf, Dkim, Dmarc, Arc)
_LATE: Final = (Stage.RCPT, Stage.DATA, Stage.MESSAGE)
_NAMED: Final = 6


def remarks(scene: Scene) -> Iterator[Remark]:
    """All that is about the order of entries, and about what is never asked."""
    for judged in scene.pipelines.values():
        for entry in judged.enforced:
            for way in entry.policy.ways() if entry.policy else ():
                yield from _way(judged, entry, way)
        yield from _idle(judged)
        yield from _foundations(judged)
        yield from _signatures(judged)
        yield from _unused(scene, judged)
    yield from _replaced(scene)


def _names(steps: tuple[Step, ...]) -> str:
    names = [step.entry.name for step in steps]
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _way(judged: Judged, entry: Entry, way: Way) -> Iterator[Remark]:
    later = judged.steps(way.stage, after=entry)
    if not later:
        return
    path = judged.path_in(entry, way.path, of_policy=True)
    who = f"{entry.name} ({way.what})" if way.what else entry.name
    if way.always and way.action is not Action.PROCEED:
        yield Remark(
            codes.NEVER_ASKED,
            path,
            f"{who} says {way.action} to all at {way.stage}, and later entries are never asked there: {_names(later)}",
            f"every client, whoever it is, hears what {entry.name} says",
            "narrow it, or put it last",
            way.offset,
        )
    elif way.action is Action.ACCEPT:
        yield from _acceptance(judged, entry, way, later)


def _acceptance(judged: Judged, entry: Entry, way: Way, later: tuple[Step, ...]) -> Iterator[Remark]:
    path = judged.path_in(entry, way.path, of_policy=True)
    who = f"{entry.name} ({way.what})" if way.what else entry.name
    checks = [step for step in later if RecipientStatus in kinds(step.entry)]
    if checks and way.trust is not Trust.SERVICE:
        yield Remark(
            codes.ACCEPTS_UNKNOWN,
            path,
            f"{who} accepts at {way.stage}, before {checks[0].entry.name} says whether the recipient exists",
            "a client that it accepts writes to <no-such-user@...>, and we take it",
            f"list {checks[0].entry.name} before {entry.name}",
            way.offset,
        )
    if way.trust is Trust.CLAIM:
        yield Remark(
            codes.CLAIM_ACCEPTS,
            path,
            f"{who} accepts at {way.stage} by what the client says of itself, without asking {_names(later)}",
            "client 192.0.2.1, a stranger, says the same of itself (sender, HELO and header fields cost nothing to "
            "forge), and passes",
            "accept by the client's address, or by what was proved (spf, dkim or dmarc in a rule); or list the entry "
            "after the checks",
            way.offset,
        )
    elif way.trust is Trust.SERVICE:
        yield Remark(
            codes.SERVICE_ACCEPTS,
            path,
            f"where {who} accepts at {way.stage}, it does so without asking {_names(later)}",
            "the service says OK for a greylisted client that came back, and the rest of the stage is over",
            f"list {entry.name} after those that must always be asked, or have the service say DUNNO",
            way.offset,
        )


def _idle(judged: Judged) -> Iterator[Remark]:
    taken: set[type[Finding]] = set()
    asks = {row.entry for row in judged.plan.table()}
    for _, step in asked(judged.plan):
        sources = [source for source, _ in step.question.sources] if step.question else []
        sources += [source for act in step.acts for source in act.sources]
        for source in sources:
            taken.update(node.finder.finding for node in leads_to(source))
    for entry in judged.plan.entries:
        path = judged.path_of(entry)
        if entry.rollout is not None and not entry.rollout.share:
            yield Remark(
                codes.NOT_ENFORCED,
                judged.path_of(entry, "enforce"),
                f"{entry.name} is enforced for 0%",
                "a client against which it speaks is let in, as in shadow",
                "write shadow: true, or a share of the traffic",
            )
        if entry.name not in asks:
            yield Remark(
                codes.NO_STAGE,
                path,
                f"{entry.name} finds nothing and decides nothing with these options",
                "mail goes by as if the entry did not stand here",
                "give it something to do, or leave it out",
            )
        elif entry.plugin and entry.policy is None and judged.says(entry, "policy") and not _of_use(entry, taken):
            yield Remark(
                codes.NOBODY_TAKES,
                judged.path_of(entry, "policy"),
                f"{entry.name} has no policy, and no other entry takes what it finds",
                "each message costs its look-ups, and they change nothing; they stand in the record only",
                "leave the entry out, or let a policy or rule ask for what it finds",
            )


def _of_use(entry: Entry, taken: set[type[Finding]]) -> bool:
    """Whether what it finds is taken by somebody, stands in Authentication-Results, or is done and not only found."""
    assert entry.plugin is not None
    if entry.plugin.learns() or any(finder.acts for finder in entry.plugin.finders):
        return True
    return any(kind in taken or kind.authentication is not Finding.authentication for kind in kinds(entry))


def _foundations(judged: Judged) -> Iterator[Remark]:
    given = judged.gives()
    for entry in judged.plan.entries:
        if entry.plugin is None:
            continue
        for finder in entry.plugin.finders:
            if finder.finding not in AUTHENTICATION and not entry.plugin.signs:
                continue
            lacking = [kind.__name__ for kind in finder.inputs if kind in AUTHENTICATION and kind not in given]
            if not lacking:
                continue
            plural = len(lacking) > 1
            yield Remark(
                codes.HALF_AUTHENTICATION,
                judged.path_of(entry),
                f"{entry.name} builds on {' and '.join(lacking)}, which no entry of this pipeline finds",
                "a message of <anna@example.com> that came by a mailing list passes by DKIM only, and one that was not "
                f"signed by SPF only: without {'them' if plural else 'it'} honest mail fails",
                f"list the {'plugins' if plural else 'plugin'} that find{'' if plural else 's'} "
                f"{'them' if plural else 'it'}: {', '.join(name.lower() for name in lacking)}",
            )


def _signatures(judged: Judged) -> Iterator[Remark]:
    for entry in judged.enforced:
        if entry.plugin is None or not entry.plugin.signs:
            continue
        changers = [
            step.entry
            for step in judged.steps(Stage.MESSAGE, after=entry)
            if step.entry.policy and step.entry.policy.changes()
        ]
        if changers:
            yield Remark(
                codes.CHANGED_AFTER_SIGNING,
                judged.path_of(entry),
                f"{entry.name} signs the message, and {', '.join(e.name for e in changers)} may change it after that",
                "anna's message is signed, then its subject is changed, and whoever gets it finds the signature broken",
                f"list {entry.name} after {changers[-1].name}",
            )


def _unused(scene: Scene, judged: Judged) -> Iterator[Remark]:
    listeners, domains = scene.users(judged.name)
    if judged.raw and not listeners and not domains:
        yield Remark(
            codes.UNUSED_PIPELINE,
            judged.path,
            f"no listener and no domain has pipeline {judged.name}",
            f"its {len(judged.raw)} entries are never asked, whoever sends to whom",
            f"write pipeline: {judged.name} at a listener or a domain, or leave it out",
        )


def _replaced(scene: Scene) -> Iterator[Remark]:
    config = scene.config
    if config.relay_from or not config.domains:
        return
    for i, listener in enumerate(config.listeners):
        judged = scene.pipelines[listener.pipeline]
        if any((domain.pipeline or listener.pipeline) == judged.name for domain in config.domains.values()):
            continue
        late = dict.fromkeys(
            step.entry.name
            for stage in _LATE
            for step in judged.steps(stage)
            if step.question and step.entry.index >= judged.implied
        )
        if late:
            someone = f"<anna@{next(iter(config.domains)).removeprefix('.')}>"
            path = ("listeners", i, "pipeline") if config.written(("listeners", i, "pipeline")) else judged.path
            yield Remark(
                codes.REPLACED_PIPELINE,
                path,
                f"every domain has a pipeline of its own, so from rcpt on nobody asks {', '.join(late)} of pipeline "
                f"{judged.name}",
                f"a client writes to {someone}, and {next(iter(late))} has no say",
                "list those entries in the domains' pipelines",
            )
