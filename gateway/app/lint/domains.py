"""Does a path take mail for who is not ours? Domains, their recipients, and where they go."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from publicsuffixlist import PublicSuffixList

from gateway.app.lint import codes
from gateway.app.lint.scene import Judged, Scene
from gateway.config.recipients import RecipientCheck, Recipients
from gateway.sdk.findings import RecipientStatus, WhenDown
from gateway.sdk.lint import Path, Remark
from gateway.sdk.stage import Stage
from gateway.transport.transport import Destination, Kind, Server

_MAY_REFUSE: Final = (Kind.SMTP, Kind.LMTP, Kind.PIPE, Kind.HTTP)
_MAILBOXES: Final = (Kind.MAILDIR, Kind.MBOX)


def remarks(scene: Scene) -> Iterator[Remark]:
    """All that is about domains and recipients."""
    for name, domain in scene.config.domains.items():
        yield from _suffix(name)
        yield from _recipients(scene, name, domain)
        yield from _next_hop(scene, ("domains", name), scene.destinations[name])
        if scene.destinations[name].mx:
            yield _own_mx(name)
    for path, route in scene.config.routes.all.items():
        yield from _next_hop(scene, path, route.destination)


def _someone(name: str) -> str:
    """An address at the domain that nobody has."""
    return f"<no-such-user@{'made-up' if name.startswith('.') else ''}{name}>"


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=False, only_icann=True)


def _suffix(name: str) -> Iterator[Remark]:
    bare = name.removeprefix(".")
    if _suffixes().is_public(bare):
        yield Remark(
            codes.PUBLIC_SUFFIX,
            ("domains", name),
            f"under {bare} anybody may have a domain",
            f"any client writes to <somebody@example.{bare}>, and we take it although it is another's",
            "name your own domains below it",
        )


def _recipients(scene: Scene, name: str, domain: Any) -> Iterator[Remark]:
    path: Path = ("domains", name, "recipients")
    if not scene.config.written(path):
        path = ("domains", name)
    place = scene.destinations[name]
    if domain.check is RecipientCheck.ANY:
        yield from _any(name, path, place)
        return
    yield from _while_down(scene, name, domain)
    for judged in scene.judging(domain):
        if not _refuses(judged):
            yield Remark(
                codes.NOBODY_REFUSES,
                path,
                f"recipients of {name} are to be checked ({domain.check}), and in pipeline {judged.name} no entry that "
                "counts refuses those who are unknown: `recipient` is in shadow there, or has no policy",
                f"any client writes to {_someone(name)}, and we take it",
                "let `recipient` be enforced, or leave the entry out: then it is implied",
            )


def _refuses(judged: Judged) -> bool:
    givers = {e.index for e in judged.enforced if e.plugin for f in e.plugin.finders if f.finding is RecipientStatus}
    return any(step.question and step.entry.index in givers for step in judged.steps(Stage.RCPT))


def _any(name: str, path: Path, place: Destination) -> Iterator[Remark]:
    someone = _someone(name)
    if name.startswith(".") and place.kind is not Kind.DISCARD:
        yield Remark(
            codes.ANY_SUBDOMAIN,
            path,
            f"any address at any name below {name.removeprefix('.')} is taken",
            f"any client writes to {someone}, a host that does not exist, and we take it",
            "name the subdomains that have mail, or let their recipients be checked",
        )
    elif place.kind in _MAY_REFUSE:
        yield Remark(
            codes.UNCHECKED_RECIPIENTS,
            path,
            f"nobody is asked whether recipients of {name} exist, and {place} may say no when it is too late",
            f"any client writes to {someone}: we say 250, {place} refuses, and the message is bounced (where SPF "
            "proves the sender) or stays on hold",
            "write recipients: {list: [...]}, {list_file: ...}, {ldap: ...}, or for smtp and lmtp {verify: callout}",
        )
    elif place.kind in _MAILBOXES and "{local}" in place.path:
        yield Remark(
            codes.STRANGERS_MAILBOXES,
            path,
            f"every recipient of {name} gets a mailbox, whoever that is",
            f"any client writes to {someone}, and a mailbox of that name is made; with names enough, the disk is full",
            "write recipients: {list: [...]} or {list_file: ...}",
        )


def _while_down(scene: Scene, name: str, domain: Any) -> Iterator[Remark]:
    if isinstance(domain.recipients, Recipients) and domain.recipients.when_down is WhenDown.ACCEPT:
        yield Remark(
            codes.TAKEN_WHILE_DOWN,
            ("domains", name, "recipients", "when_down"),
            f"while recipients of {name} cannot be checked, all of them are taken",
            f"the store is down, and any client writes to {_someone(name)}: taken now, refused when the store is back",
            "write when_down: defer, unless lost time is worse than mail that cannot be delivered",
        )


def _next_hop(scene: Scene, path: Path, place: Destination) -> Iterator[Remark]:
    if place.kind is not Kind.SMTP:
        return
    for server in place.servers:
        i = _own_listener(scene, server)
        if i is not None:
            at = (*path, "next_hop") if scene.config.written((*path, "next_hop")) else path
            yield Remark(
                codes.LOOP,
                at,
                f"smtp:{server} is listeners[{i}] ({scene.config.listeners[i].address})",
                "a message for it comes back to us, is taken again, and goes round until it is refused as a loop",
                "name the mail store behind us",
            )
            return


def _own_listener(scene: Scene, server: Server) -> int | None:
    """The place of the listener that the next hop is."""
    for i, listener in enumerate(scene.config.listeners):
        own = listener.address
        local = server.host in (own.host, "localhost", scene.config.hostname) or (
            own.ip.is_unspecified and server.host in ("127.0.0.1", "::1", "0.0.0.0", "::")
        )
        if local and server.port == own.port:
            return i
    return None


def _own_mx(name: str) -> Remark:
    return Remark(
        codes.OWN_MX,
        ("domains", name, "next_hop"),
        f"mail for {name} goes to its MX hosts, of which we are most likely one",
        f"if we are its best MX, a message for <anna@{name.removeprefix('.')}> fails as a loop after we have said 250",
        "name the mail store; `mx` is right only where we are a backup behind a better MX",
    )
