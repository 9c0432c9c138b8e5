"""Remarks of plugins and policies on their own options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from gateway.app.lint import codes
from gateway.app.lint.scene import Judged, Scene
from gateway.pipeline.catalog import describe
from gateway.pipeline.plan import Entry
from gateway.sdk.lint import Check, Path, Remark, Setting
from gateway.services.dns import system_servers

REMARKS: Final = 50
"""Of one entry; what comes after is left out."""

PUBLIC_RESOLVERS: Final = frozenset(
    (
        *("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"),
        *("1.1.1.1", "1.0.0.1", "1.1.1.2", "1.0.0.2", "2606:4700:4700::1111", "2606:4700:4700::1001"),
        *("9.9.9.9", "149.112.112.112", "9.9.9.10", "2620:fe::fe", "2620:fe::9"),
        *("208.67.222.222", "208.67.220.220", "2620:119:35::35", "2620:119:53::53"),
    )
)
"""Of Google, Cloudflare, Quad9 and OpenDNS."""


def remarks(scene: Scene) -> Iterator[Remark]:
    """What each entry's plugin and policy have to say."""
    for judged in scene.pipelines.values():
        setting = _setting(scene, judged)
        for entry in judged.plan.entries:
            if entry.plugin is not None:
                yield from _of(judged, entry, entry.plugin.lint, entry.plugin.checks, setting, of_policy=False)
            if entry.policy is not None:
                yield from _of(judged, entry, entry.policy.lint, entry.policy.checks, setting, of_policy=True)


def _setting(scene: Scene, judged: Judged) -> Setting:
    config = scene.config
    servers = [server.host for server in config.dns.nameservers] or [host for host, _ in system_servers()]
    return Setting(
        config.hostname,
        tuple(config.domains),
        config.limits.message_size,
        bool(config.relay_from),
        tuple(server for server in servers if server in PUBLIC_RESOLVERS),
        judged.gives(),
    )


def _of(
    judged: Judged,
    entry: Entry,
    hook: Callable[[Setting], Iterable[Remark]],
    checks: Sequence[Check],
    setting: Setting,
    *,
    of_policy: bool,
) -> Iterator[Remark]:
    said: list[Remark] = []
    try:
        for remark in hook(setting):
            if remark.check not in checks:
                raise ValueError(f"{remark.check.code} is not among its checks")
            said.append(replace(remark, path=judged.path_in(entry, _checked(remark.path), of_policy=of_policy)))
            if len(said) >= REMARKS:
                break
    except Exception as error:  # noqa: BLE001 - what somebody's own check raises is a remark, and the others go on
        said.append(
            Remark(
                codes.BROKEN_HOOK,
                judged.path_of(entry),
                f"{entry.name} cannot look at its own options: {describe(error)[:300]}",
                "what it would have warned of is not known",
                "tell whoever wrote it",
            )
        )
    yield from said


def _checked(path: Path) -> Path:
    """The path, if it is one."""
    if not all(isinstance(part, (str, int)) for part in path):
        raise ValueError(f"{path!r} is no path")
    return tuple(path)
