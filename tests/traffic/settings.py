"""The gateway that a day is recorded with, and three others that its operator might think of.

What matters to a verdict is a field of `Setting`: the configuration is written from it, and `tests.traffic.expected`
works out from the same fields, and the documentation of plugins and policies, what comes of each transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.traffic.corpus import HOOKS, MARKER, SIZE_LIMIT, SUBJECT_HOOK
from tests.traffic.day import ALLOWANCE, Day
from tests.traffic.people import BLOCKED, BULK, CLOSED, DRONES, DROPPED, HOSTNAME, OURS, RELAXED, TRUSTED

WEIGHTS: Final = {BLOCKED: 3, DRONES: 2, TRUSTED: -5}
DELAY: Final = 3.0
"""Seconds of greylisting: who comes again does so after that."""


@dataclass(frozen=True)
class Setting:
    """What differs.

    `drop_list` and `sender_list` say whether these entries are there at all; `generic_share` is the share of the
    traffic in which clients with generic names are refused; `dmarc` is what is done where a domain asks for reject, and
    where it asks for quarantine; `unproved` is a rule that sets aside what nothing proves; `greylist` and `allowance`
    are of entries with a memory.
    """

    reject_at: float = 5
    drop_list: bool = True
    sender_list: bool = True
    generic_share: int = 10
    dmarc: tuple[str, str] = ("quarantine", "none")
    unproved: bool = False
    score_reject_at: float | None = 6
    greylist: tuple[tuple[str, Any], ...] = ()
    allowance: int = ALLOWANCE


BASE: Final = Setting()
STRICTER_LISTS: Final = replace(BASE, reject_at=3)
STRICTER_DMARC: Final = replace(BASE, dmarc=("reject", "quarantine"), unproved=True, generic_share=50)
LAXER: Final = replace(BASE, drop_list=False, sender_list=False, score_reject_at=None)
FORGETFUL: Final = replace(LAXER, greylist=(("when", "always"),), allowance=ALLOWANCE // 2)
"""As `LAXER`, with other options of entries that have a memory: no record tells what those would have done."""


def pipeline(setting: Setting) -> list[dict[str, Any]]:
    """The entries in judging order."""
    zones = {"zones": WEIGHTS, "reject_at": setting.reject_at}
    score = {} if setting.score_reject_at is None else {"reject_at": setting.score_reject_at}
    generic = {"name": "generic-name", "when": "reverse_name.generic", "then": {"reject": "5.7.25 no such names"}}
    nothing = 'spf.result != "pass" && dkim.passed.size() == 0'
    shadow = {"name": "nothing-proved", "when": nothing, "then": {"reject": "5.7.1 no"}}
    drop = {"at": "connect", "lists": [{"match": "client", "kind": "cidr", "entries": [f"{DROPPED} reject"]}]}
    unproved = {"name": "unproved", "when": f'dmarc.result == "none" && {nothing}', "then": "quarantine"}
    suspended = {"when": f'message.subject.startsWith("{SUBJECT_HOOK}")', "then": "quarantine"}
    hooks = {"match": ["text"], "entries": [f"/{hook}/ SCORE {3 * n}" for n, hook in enumerate(HOOKS, 1)]}
    marker = {"match": ["body"], "entries": [f"/{MARKER}/ REJECT 5.7.1 virus"]}
    entries: list[tuple[bool, dict[str, Any]]] = [
        (setting.drop_list, {"access": drop}),
        (True, {"dnsbl": zones}),
        (True, {"helo": {"own_names": [OURS], "defer": ["no-such-name"]}}),
        (True, {"rdns": {"nameless": "defer"}}),
        (setting.sender_list, {"access": _access("sender", f".{BULK} reject")}),
        (True, {"access": _access("recipient", f"{CLOSED} reject 5.2.1 mailbox is closed")}),
        (True, {"recipient": {}}),
        (True, {"spf": {}}),
        (True, {"rules": [generic], "enforce": f"{setting.generic_share}%"}),
        (True, {"ratelimit": {"key": ["client", "sender"], "rate": f"{setting.allowance}/1d"}}),
        (True, {"greylist": {"delay": f"{DELAY:g}s", "learn_after": 0, **dict(setting.greylist)}}),
        (True, {"rules": [shadow], "shadow": True}),
        (True, {"dkim": {}}),
        (True, {"arc": {"trusted": []}}),
        (True, {"dmarc": dict(zip(("reject", "quarantine"), setting.dmarc, strict=True))}),
        (True, {"mime": {}}),
        (True, {"attachments": {}}),
        (setting.unproved, {"rules": [unproved]}),
        (True, {"rules": [suspended]}),
        (True, {"content-checks": {"tables": [marker, hooks], "quarantine_at": 3, **score}}),
    ]
    return [entry for there, entry in entries if there]


def _access(match: str, line: str) -> dict[str, Any]:
    return {"lists": [{"match": match, "entries": [line]}]}


def options(setting: Setting, day: Day, nameserver: str, directory: Path) -> dict[str, Any]:
    """The whole configuration, but for ports and the listener."""
    entries = pipeline(setting)
    for entry in entries:
        if "arc" in entry:
            entry["arc"] = {"trusted": [day.people.lists[0].domain.name]}
    lists = {"dnsbl": {"zones": WEIGHTS, "reject_at": 5}}
    relaxed = [lists, {"recipient": {}}, {"spf": {}}, {"dkim": {}}, {"dmarc": {}}]
    return {
        "hostname": HOSTNAME,
        "workers": 2,
        "spool": {"path": str(directory / "spool")},
        "state": {"path": str(directory / "state")},
        "dns": {"nameservers": [nameserver], "timeout": "10s"},
        "limits": {"message_size": f"{SIZE_LIMIT >> 10}KiB", "errors": 100},
        "pipeline": entries,
        "pipelines": {"relaxed": relaxed},
        "domains": {
            OURS: {"next_hop": "discard", "recipients": {"list": _locals(day.staff)}},
            RELAXED: {"next_hop": "discard", "recipients": {"list": _locals(day.relaxed)}, "pipeline": "relaxed"},
        },
    }


def _locals(addresses: tuple[str, ...]) -> list[str]:
    return [address.partition("@")[0] for address in addresses]
