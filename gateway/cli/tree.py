"""A decision record as a tree, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from rich.text import Text
from rich.tree import Tree

from gateway.cli.edits import show_edits
from gateway.cli.output import text, when
from gateway.ops.deciding import decided
from gateway.ops.operations import DEEDS

_GOOD: Final = {"accepted", "delivered", "accept", "proceed"}
_BAD: Final = {"rejected", "failed", "expired", "reject", "disconnect", "disconnected", "corrupt"}
_DONE: Final = {"expired", "imported", *DEEDS.values()}
"""What somebody did, which stands among the attempts."""
_STAGES: Final = ("connect", "helo", "auth", "mail", "rcpt", "data", "message")


def tree(explained: dict[str, Any]) -> Tree:
    """One transaction as a tree, from the JSON that ``--json`` prints; without attempts it was only simulated."""
    record = explained["record"]
    outcome = record.get("outcome", "?")
    root = Tree(_line((record.get("id", "?"), "bold"), (outcome, _style(outcome)), (record.get("reply", ""), "")))
    _session(root, record)
    _stages(root, record)
    _recipients(root, record)
    if edits := record.get("edits"):
        root.add(show_edits(edits))
    _decided(root, explained)
    _delivery(root, explained)
    return root


def _line(*parts: tuple[object, str]) -> Text:
    """Parts with their styles, joined by spaces; empty ones left out."""
    return Text(" ").join(text(part, style) for part, style in parts if part not in ("", None))


def _style(word: str) -> str:
    return "green" if word in _GOOD else "red" if word in _BAD else "yellow"


def _session(root: Tree, record: dict[str, Any]) -> None:
    client = record.get("client") or {}
    where = f"[{client.get('ip', '?')}]:{client.get('port', 0)}"
    branch = root.add(_line(("session", "bold"), (record.get("session", ""), "")))
    branch.add(_line(("client", "dim"), (client.get("name", ""), ""), (where, "")))
    if peer := client.get("peer"):
        branch.add(_line(("through", "dim"), (peer, "")))
    branch.add(_line(("listener", "dim"), (record.get("listener", ""), "")))
    branch.add(_line(("helo", "dim"), (record.get("helo") or "none", "")))
    tls = record.get("tls")
    encryption = f"{tls.get('version', '')} {tls.get('cipher', '')} {tls.get('sni', '')}" if tls else "none"
    branch.add(_line(("tls", "dim"), (encryption.strip(), "")))
    if shown := (tls or {}).get("client"):
        branch.add(_certificate(shown))
    branch.add(_line(("time", "dim"), (when(record.get("time", 0)), "")))
    if record.get("sender") is not None:
        branch.add(_line(("sender", "dim"), (record["sender"], "")))
    by = f"of configuration {record['config']}" if record.get("config") else ""
    branch.add(_line(("pipeline", "dim"), (record.get("pipeline", ""), ""), (by, "dim")))
    if mta := record.get("mta"):
        queued = f"queue id {mta['queue_id']}" if mta.get("queue_id") else ""
        branch.add(_line(("for another MTA", "dim"), (mta.get("through", ""), ""), (queued, "")))
        for what in mta.get("left_out", []):
            branch.add(_line(("it was not told", "dim"), (what, "yellow")))
    if record.get("size"):
        branch.add(_line(("size", "dim"), (f"{record['size']} octets", "")))


def _certificate(shown: dict[str, Any]) -> Text:
    """What the client showed: who it is by which CA, or why that is not known."""
    fingerprint = (f"SHA-256 {shown.get('fingerprint', '')}", "dim")
    if not shown.get("verified"):
        return _line(("certificate", "dim"), (f"not verified: {shown.get('problem', '')}", "yellow"), fingerprint)
    names = ", ".join(shown.get("names", []))
    issuer = f"by {shown.get('issuer', '')}"
    return _line(
        ("certificate", "dim"),
        ("verified", "green"),
        (shown.get("subject", ""), ""),
        (names, ""),
        (issuer, ""),
        fingerprint,
    )


def _stages(root: Tree, record: dict[str, Any]) -> None:
    findings, verdicts = record.get("findings", []), record.get("verdicts", [])
    deciders = {id(verdicts[told["verdict"]]) for told in decided(record)}
    for stage in _STAGES:
        here = [f for f in findings if f.get("stage") == stage]
        said = [v for v in verdicts if v.get("stage") == stage]
        if not here and not said:
            continue
        branch = root.add(_line((f"stage {stage}", "bold")))
        for finding in here:
            branch.add(_finding(finding))
        for verdict in said:
            branch.add(_verdict(verdict, decides=id(verdict) in deciders))
    if any(note.get("truncated") for note in (*findings, *verdicts)):
        root.add(text("the record was too long and is cut here", "yellow"))


def _finding(finding: dict[str, Any]) -> Text:
    name = f"{finding.get('plugin', '?')}: {finding.get('finding', '?')}"
    recipient = f"for {finding['recipient']}" if finding.get("recipient") else ""
    took = f"{finding['ms']:g} ms" if isinstance(finding.get("ms"), (int, float)) else ""
    if finding.get("fault"):
        return _line(
            (name, ""), (recipient, "dim"), (finding["fault"], "red"), (finding.get("detail", ""), ""), (took, "dim")
        )
    if finding.get("pending"):
        return _line((name, ""), (recipient, "dim"), ("not waited for", "yellow"))
    took = "given" if finding.get("given") else took
    return _line((name, ""), (recipient, "dim"), (_values(finding.get("value")), ""), (took, "dim"))


def _values(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    return " ".join(f"{key}={v if isinstance(v, str) and v else json.dumps(v)}" for key, v in value.items())


def _verdict(verdict: dict[str, Any], *, decides: bool) -> Text:
    action = str(verdict.get("action", "?"))
    policy, version = verdict.get("policy", "?"), verdict.get("version", "")
    by = (
        f"{verdict.get('plugin', '?')} says"
        if policy == "on_error"
        else f"{policy}{f' v{version}' if version else ''} says"
    )
    recipient = f"for {verdict['recipient']}" if verdict.get("recipient") else ""
    return _line(
        (by, ""),
        (action, _style(action)),
        ("(shadow: not applied)" if verdict.get("shadow") else "", "magenta"),
        ("(by on_error)" if policy == "on_error" else "", "yellow"),
        (recipient, "dim"),
        (verdict.get("reply", ""), ""),
        (f"because {verdict['reason']}" if verdict.get("reason") else "", "dim"),
        ("<- decided" if decides else "", "bold"),
    )


def _recipients(root: Tree, record: dict[str, Any]) -> None:
    recipients = record.get("recipients") or []
    if recipients:
        branch = root.add(_line(("recipients", "bold")))
        for recipient in recipients:
            reply = str(recipient.get("reply", ""))
            branch.add(_line((recipient.get("address", "?"), ""), (reply, "green" if reply.startswith("2") else "red")))


def _decided(root: Tree, explained: dict[str, Any]) -> None:
    """Who decided, and what would have happened without."""
    if "decided" not in explained:
        return
    if not explained["decided"]:
        root.add(_line(("decided by", "bold"), ("nobody in the pipeline", "")))
        return
    branch = root.add(_line(("decided by", "bold")))
    for told in explained["decided"]:
        whom = f"for {told['recipient']}" if told.get("recipient") else ""
        action = str(told.get("action", "?"))
        stage = f"at {told.get('stage', '?')}"
        branch.add(_line((told.get("plugin", "?"), ""), (stage, "dim"), (action, _style(action)), (whom, "dim")))
    for one in explained.get("without", ()):
        branch.add(_line(("without", "bold"), (one.get("plugin", "?"), ""), *_without(one)))


def _without(one: dict[str, Any]) -> Iterator[tuple[object, str]]:
    if one.get("unknown"):
        yield "not known:", "yellow"
        yield one["unknown"], ""
        return
    if beyond := one.get("beyond"):
        yield f"it would have gone on behind {beyond}; nothing is recorded of what comes after", "yellow"
    else:
        outcome = str(one.get("outcome", "?"))
        yield outcome, _style(outcome)
        yield (f"by {one['by']}" if one.get("by") else ""), "dim"
        yield one.get("reply", ""), ""
    if one.get("refused"):
        yield f"without {', '.join(map(str, one['refused']))}", "dim"


def _tls(attempt: dict[str, Any]) -> str:
    """How the way to the next hop was protected, and by which policy."""
    tls = attempt.get("tls")
    if not isinstance(tls, dict):
        return ""
    session = str(tls.get("session") or "") or ("no TLS" if attempt.get("outcome") != "deferred" else "")
    peer = f"peer by {tls['peer']}" if tls.get("peer") else ""
    return ", ".join(part for part in (f"tls {tls.get('policy', '?')}", session, peer) if part)


def _delivery(root: Tree, explained: dict[str, Any]) -> None:
    if "attempts" not in explained:
        return
    if explained["attempts"]:
        branch = root.add(_line(("delivery attempts", "bold")))
        for attempt in explained["attempts"]:
            outcome = str(attempt.get("outcome", "?"))
            host = f"by {attempt['host']}" if attempt.get("host") else ""
            branch.add(
                _line(
                    (when(attempt.get("time", 0)), "dim"),
                    (attempt.get("recipient", "?"), ""),
                    (outcome, _style(outcome)),
                    (host, ""),
                    (attempt.get("reply", ""), ""),
                    (_tls(attempt), "dim"),
                    (f"{attempt.get('seconds', 0):g} s" if outcome not in _DONE else "", "dim"),
                )
            )
    if "stored" not in explained:
        return
    stored = explained["stored"]
    if stored is None:
        root.add(_line(("now", "bold"), ("no longer in the spool", "")))
        return
    branch = root.add(_line(("now", "bold"), (stored["state"], _style(stored["state"])), (stored["reason"], "")))
    for slot in stored["recipients"]:
        due = f"due {when(slot['due'])}" if slot["status"] in ("pending", "deferred") else ""
        branch.add(
            _line((slot["address"], ""), (slot["status"], _style(slot["status"])), (due, ""), (slot["last"], ""))
        )
