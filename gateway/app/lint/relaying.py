"""Can a stranger relay? Who may send anywhere, and who can make us believe that he is such a one.

Relay control is the front door's, before any pipeline: no policy's `accept` opens it. What is left to go wrong is who
counts as a client of ours.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, Final

from gateway.app.lint import codes
from gateway.app.lint.scene import Scene
from gateway.sdk.lint import Remark

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_EVERYBODY: Final = {4: 7, 6: 19}
"""Prefixes this short or shorter are more than any one operator has."""
_LARGE: Final = {4: 15, 6: 31}
"""And these more than nearly all have."""

CONTAINERS: Final = {
    ipaddress.ip_network("172.17.0.0/16"): "Docker's bridge",
    ipaddress.ip_network("10.88.0.0/16"): "Podman's bridge",
    ipaddress.ip_network("10.42.0.0/16"): "pods of k3s and RKE2",
    ipaddress.ip_network("10.43.0.0/16"): "services of k3s and RKE2",
    ipaddress.ip_network("10.244.0.0/16"): "pods of flannel, kind and minikube",
    ipaddress.ip_network("10.96.0.0/12"): "services of kubeadm",
}
"""Networks that container platforms take unless told otherwise. What comes from outside often has such an address:
the one of a bridge, a node or a proxy that forwards it."""


def remarks(scene: Scene) -> Iterator[Remark]:
    """All that is about relaying."""
    yield from _too_wide(scene)
    yield from _proxies(scene)
    yield from _containers(scene)
    yield from _forged(scene)
    yield from _xclient(scene)


def _public(network: Network) -> bool:
    """Whether it holds addresses of the Internet."""
    return not (network.is_private or network.is_loopback or network.is_link_local or network == _SHARED)


_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")


def _too_wide(scene: Scene) -> Iterator[Remark]:
    networks = scene.config.relay_from
    whole = [network for network in _collapsed(networks) if network.prefixlen <= _LARGE[network.version]]
    for i, network in enumerate(networks):
        wide = next((w for w in whole if _covers(w, network)), None)
        if wide is None or not _public(network):
            continue
        everybody = wide.prefixlen <= _EVERYBODY[network.version]
        alone = "" if wide == network else f" (with its neighbours {wide})"
        yield Remark(
            codes.EVERYBODY_RELAYS if everybody else codes.PUBLIC_RELAYS,
            ("relay_from", i),
            f"{network}{alone} may send to any domain",
            f"client {_example(network)} sends from <anybody@example.com> to <somebody@example.net>, and we deliver "
            "it: block lists name such hosts within hours",
            "list only networks whose every address is a machine of yours; strangers need no entry to write to you",
        )


def _collapsed(networks: Iterable[Network]) -> Iterator[Network]:
    yield from ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv4Network))
    yield from ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv6Network))


def _covers(outer: Any, inner: Any) -> bool:
    return outer.version == inner.version and bool(inner.subnet_of(outer))


def _meet(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _example(network: Network) -> str:
    return str(network[1] if network.num_addresses > 1 else network[0])


def _direct(scene: Scene) -> list[int]:
    """Listeners that take whoever connects for the client, and can be reached from outside."""
    return [i for i, one in scene.outside if one.proxy_protocol is None]


def _proxies(scene: Scene) -> Iterator[Remark]:
    direct = _direct(scene)
    proxies = [n for one in scene.config.listeners if one.proxy_protocol for n in one.proxy_protocol.trusted]
    for i, network in enumerate(scene.config.relay_from):
        proxy = next((p for p in proxies if _meet(p, network)), None)
        if proxy is None or not direct:
            continue
        yield Remark(
            codes.PROXY_RELAYS,
            ("relay_from", i),
            f"{network} overlaps the proxies' {proxy}, and listeners[{direct[0]}] does not ask for the PROXY header",
            f"a stranger comes through the proxy to listeners[{direct[0]}]: the client is the proxy, and may send from "
            "<anybody@example.com> to <somebody@example.net>",
            "leave the proxies' addresses out of relay_from, or give every listener proxy_protocol",
        )


def _containers(scene: Scene) -> Iterator[Remark]:
    direct = _direct(scene)
    if not direct:
        return
    for i, network in enumerate(scene.config.relay_from):
        inside = next((name for known, name in CONTAINERS.items() if _covers(known, network)), "")
        around = next((f"{known} ({name})" for known, name in CONTAINERS.items() if _covers(network, known)), "")
        if not inside and (not around or _public(network)):
            continue
        yield Remark(
            codes.CONTAINER_RELAYS if inside else codes.PRIVATE_RELAYS,
            ("relay_from", i),
            f"{network} is a network of {inside}" if inside else f"{network} holds {around}",
            f"a stranger's connection is forwarded to listeners[{direct[0]}] and comes with the address of a bridge or "
            "a node, which may send from <anybody@example.com> to <somebody@example.net>",
            "let the true address come through (proxy_protocol, or externalTrafficPolicy: Local), or list the single "
            "addresses of those who may relay",
        )


def _forged(scene: Scene) -> Iterator[Remark]:
    for i, listener in enumerate(scene.config.listeners):
        for key, what in (("proxy_protocol", "a PROXY header"), ("xclient", "XCLIENT")):
            section = getattr(listener, key)
            for j, network in enumerate(section.trusted if section else ()):
                if not _public(network) or network.prefixlen > _LARGE[network.version]:
                    continue
                relay = scene.config.relay_from
                gain = f"may relay as {_example(relay[0])}" if relay else "is on no block list and has no bad name"
                yield Remark(
                    codes.FORGED_CLIENT,
                    ("listeners", i, key, "trusted", j),
                    f"everybody in {network} is believed who the client is",
                    f"client {_example(network)} sends {what} with an address of its choice, and {gain}",
                    "list only the addresses of your own proxies",
                )


def _xclient(scene: Scene) -> Iterator[Remark]:
    for i, listener in enumerate(scene.config.listeners):
        for j, network in enumerate(listener.xclient.trusted if listener.xclient else ()):
            relay = next((r for r in scene.config.relay_from if _meet(r, network)), None)
            if relay is None:
                continue
            yield Remark(
                codes.XCLIENT_RELAYS,
                ("listeners", i, "xclient", "trusted", j),
                f"{network} overlaps relay_from ({relay}): while a server there sends no XCLIENT, it is the client",
                f"the server at {_example(network)} hands on a stranger's mail without XCLIENT, and "
                "<anybody@example.com> may write to <somebody@example.net>",
                "take it out of relay_from; if the server sends mail of its own, let it use another listener",
            )
