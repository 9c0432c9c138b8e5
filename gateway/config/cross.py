"""Checks between keys. They read the file's own values, so that they also speak when single values are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from gateway.config.document import Document
from gateway.config.problems import Path, did_you_mean
from gateway.config.values import parse_domain_key, parse_host_port, parse_sender_key

DEFAULT_PIPELINE: Final = "default"
ADMIN_ADDRESS: Final = "127.0.0.1:9925"


def check_together(document: Document) -> None:
    """Note what does not fit together: addresses or domains twice, pipelines and transports that do not exist."""
    _addresses(document)
    _domains(document)
    _pipelines(document)
    _transports(document)
    if _mapping(document.values, "evacuate").get("when") == "drain" and _mapping(document.values, "spool").get(
        "postgres"
    ):
        document.refuse(("evacuate", "when"), "is drain, and who shares spool.postgres delivers its mail anyway: never")


def _mapping(value: Any, key: str) -> dict[str, Any]:
    """The mapping under `key`; an empty one where there is something else, which validation reports."""
    below = value.get(key) if isinstance(value, dict) else None
    return below if isinstance(below, dict) else {}


def _listeners(document: Document) -> Iterator[tuple[Path, dict[str, Any]]]:
    values = document.values
    listeners = values.get("listeners") if isinstance(values, dict) else None
    for i, listener in enumerate(listeners if isinstance(listeners, list) else []):
        if isinstance(listener, dict):
            yield ("listeners", i), listener


def _addresses(document: Document) -> None:
    used: dict[str, str] = {}
    admin: dict[str, Any] = {"address": ADMIN_ADDRESS, **_mapping(document.values, "admin")}
    places: list[tuple[Path, dict[str, Any]]] = [(("admin",), admin), *_listeners(document)]
    for path, place in places:
        try:
            address = parse_host_port(place.get("address"))
        except ValueError:
            continue
        if not address.port:
            continue
        if str(address) in used:
            document.refuse((*path, "address"), f"{used[str(address)]} has the same address")
        used.setdefault(str(address), "admin" if len(path) == 1 else f"listeners[{path[1]}]")


def _domains(document: Document) -> None:
    routes = _mapping(document.values, "routes")
    ours = _twice(document, ("domains",), _mapping(document.values, "domains"), parse_domain_key)
    others = _twice(document, ("routes", "domains"), _mapping(routes, "domains"), parse_domain_key)
    _twice(document, ("routes", "senders"), _mapping(routes, "senders"), parse_sender_key)
    for name in ours.keys() & others.keys():
        document.refuse(("routes", "domains", others[name]), "is a domain of ours: its next hop stands under `domains`")


def _twice(document: Document, path: Path, table: dict[str, Any], parse: Callable[[Any], str]) -> dict[str, str]:
    """The names of a table by their keys; those that are the same are refused."""
    names: dict[str, str] = {}
    for written in table:
        try:
            name = parse(written)
        except ValueError:
            continue
        if name in names:
            what = "sender" if "@" in name else "domain"
            document.refuse((*path, written), f"is the same {what} as {names[name]}")
        names[name] = written
    return names


def _pipelines(document: Document) -> None:
    pipelines = _mapping(document.values, "pipelines")
    if DEFAULT_PIPELINE in pipelines:
        document.refuse(
            ("pipelines", DEFAULT_PIPELINE), "is the name of the top-level pipeline; write it under `pipeline`"
        )
    known = {DEFAULT_PIPELINE, *pipelines}
    users: list[tuple[Path, Any]] = list(_listeners(document))
    users += [(("domains", name), domain) for name, domain in _mapping(document.values, "domains").items()]
    for path, user in users:
        name = user.get("pipeline") if isinstance(user, dict) else None
        if isinstance(name, str) and name not in known:
            document.refuse((*path, "pipeline"), f"there is no pipeline {name!r}{did_you_mean(name, sorted(known))}")


def _transports(document: Document) -> None:
    known = sorted(_mapping(document.values, "transports"))
    places: list[tuple[Path, Any]] = [
        (("domains", name, "next_hop"), _mapping(domains, name).get("next_hop"))
        for domains in [_mapping(document.values, "domains")]
        for name in domains
    ]
    routes = _mapping(document.values, "routes")
    named: list[tuple[Path, Any]] = [(("routes", "default"), routes.get("default"))]
    for table in ("domains", "senders"):
        named += [(("routes", table, name), route) for name, route in _mapping(routes, table).items()]
    for path, route in named:
        places.append((path, route))
        places.append(((*path, "next_hop"), route.get("next_hop") if isinstance(route, dict) else None))
    for path, hop in places:
        scheme, _, name = hop.strip().partition(":") if isinstance(hop, str) else ("", "", "")
        if scheme == "transport" and name not in known:
            document.refuse(path, f"there is no transport {name!r}{did_you_mean(name, known)}")
