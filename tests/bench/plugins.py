"""``make bench-plugins``: what each plugin costs a message, in microseconds of processor time, one after the other.

Each plugin's finders run for the same signed message of 4 KB from the same client, with answers of the DNS at hand and
state in SQLite: what is measured is the plugin's own work (threads included) and the state store's, not the network's.
Compare the rows with each other; the numbers belong to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dkim

from gateway.sdk import Plugin, PluginOptions, Recipient, Services, Session, Transaction
from gateway.sdk.testing import (
    FakeDirectory,
    FakeDns,
    make_message,
    make_recipient,
    make_session,
    make_transaction,
    plugin_class,
)
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState
from tests.support.dkimkeys import KeyPair, ed25519, rsa

_GIVERS = {
    "dmarc": ("spf", "dkim"),
    **dict.fromkeys(("attachments", "uribl", "content-checks", "dlp"), ("mime",)),
}
"""Who finds out what a plugin wants to know first."""
_CLIENT, _DOMAIN, _HOST = "192.0.2.1", "sender.example", "mail.sender.example"


def signed_message(key: KeyPair | None = None, selector: str = "s") -> bytes:
    """About 4 KB, signed by `key` where one is given."""
    body = b"".join(b"Line %04d of a message that says nothing much, but says it at length.\r\n" % n for n in range(50))
    message = (
        f"From: Ann <ann@{_DOMAIN}>\r\nTo: anna@example.org\r\nSubject: benchmark\r\n"
        f"Date: Sun, 01 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@{_DOMAIN}>\r\n\r\n"
    ).encode() + body
    if key is None:
        return message
    fields = [b"from", b"to", b"subject", b"date", b"message-id"]
    signature: bytes = dkim.sign(message, selector.encode(), _DOMAIN.encode(), key.traditional, include_headers=fields)
    return signature + message


def rows(directory: Path) -> list[tuple[str, str, Mapping[str, Any]]]:
    """What is shown, the plugin, its options."""
    private = {}
    for name, key in (("rsa", rsa(2048)), ("ed25519", ed25519())):
        private[name] = directory / name
        private[name].write_bytes(key.pem)
        private[name].chmod(0o600)
    networks = {"match": "client", "kind": "cidr", "file": str(directory / "access")}
    lists = {f"{n}.lists.example": 1 for n in ("one", "two", "three")}
    access = [f"198.51.{a}.{b}/32 reject" for a in range(40) for b in range(250)]
    (directory / "access").write_text("\n".join(access) + "\n")

    def signs(name: str) -> dict[str, Any]:
        return {"domains": {_DOMAIN: {"keys": [{"selector": "s", "key_file": str(private[name])}]}}}

    def checks(where: str) -> dict[str, Any]:
        entries = [f"/suspicious{number}.*word/ SCORE 1" for number in range(100)]
        return {"tables": [{"match": [where], "entries": entries}]}

    return [
        ("`pregreet`, a remembered client", "pregreet", {}),
        ("`dnsbl`, three lists", "dnsbl", {"zones": lists, "probe": 0}),
        ("`rdns`", "rdns", {}),
        ("`helo`", "helo", {}),
        ("`sender`", "sender", {}),
        (
            "`access`, 10,000 networks",
            "access",
            {"lists": [networks]},
        ),
        ("`ratelimit`, one bucket", "ratelimit", {"rate": "1000000/1h"}),
        ("`greylist`, a known sender", "greylist", {"when": "always", "delay": "1ms"}),
        ("`spf`, record with one include", "spf", {}),
        ("`dkim`, RSA-2048", "dkim", {}),
        ("`dmarc`, RFC 9989", "dmarc", {}),
        ("`dmarc`, RFC 7489", "dmarc", {"rules": "rfc7489"}),
        ("`dkim-sign`, RSA-2048", "dkim-sign", signs("rsa")),
        ("`dkim-sign`, Ed25519", "dkim-sign", signs("ed25519")),
        ("`mime`, one part", "mime", {}),
        ("`attachments`, one part of text", "attachments", {}),
        ("`uribl`, no address in the text", "uribl", {"lists": {"uri.lists.example": {"codes": {"127.0.0.2": 5}}}}),
        ("`content-checks`, 100 patterns for the header", "content-checks", checks("header")),
        ("`content-checks`, 100 patterns for the text", "content-checks", checks("text")),
        ("`dlp`, cards and account numbers", "dlp", {"detect": {"payment-card": {}, "iban": {}}}),
        ("`disclaimer`", "disclaimer", {"text": "This message is for its recipient only.", "senders": [_DOMAIN]}),
    ]


def dns() -> FakeDns:
    return FakeDns(
        ptr={"1.2.0.192.in-addr.arpa": [_HOST]},
        a={_HOST: [_CLIENT], _DOMAIN: [_CLIENT]},
        mx={_DOMAIN: [(10, _HOST)]},
        txt={
            _DOMAIN: ["v=spf1 include:more.sender.example -all"],
            "more.sender.example": [f"v=spf1 ip4:{_CLIENT} -all"],
            f"s._domainkey.{_DOMAIN}": [rsa(2048).record],
            f"_dmarc.{_DOMAIN}": ["v=DMARC1; p=reject"],
        },
    )


async def microseconds(name: str, options: Mapping[str, Any], services: Services, count: int) -> float:
    """Median over rounds of the processor time of all the plugin's finders, per message."""
    cls: type[Plugin] = plugin_class(name)
    parsed: PluginOptions = cls.Options.model_validate(options)
    plugin = cls(parsed, services)
    await plugin.start()
    try:
        session = make_session(_CLIENT, helo=_HOST, trusted=name in ("dkim-sign", "disclaimer"))
        transaction = make_transaction(session, sender=f"ann@{_DOMAIN}", recipients=["anna@example.org"])
        message = make_message(signed_message() if name == "dkim-sign" else signed_message(rsa(2048)))
        given: dict[type, object] = {
            Session: session,
            Transaction: transaction,
            Recipient: make_recipient("anna@example.org"),
            type(message): message,
        }
        for giver in _GIVERS.get(name, ()):
            found = await _found(giver, services, given)
            given[type(found)] = found
        wanted = {kind for finder in plugin.finders for kind in finder.inputs}
        # What another finder of the plugin takes comes first, as in the pipeline.
        finders = sorted(plugin.finders, key=lambda finder: finder.finding not in wanted)
        costs = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(count):
                for finder in finders:
                    found = await getattr(plugin, finder.method)(*[given.get(kind) for kind in finder.inputs])
                    given[type(found)] = found
            costs.append((time.process_time() - began) / count * 1e6)
        return statistics.median(costs)
    finally:
        await plugin.close()


async def _found(name: str, services: Services, given: Mapping[type, object]) -> object:
    cls = plugin_class(name)
    plugin = cls(cls.Options.model_validate({}), services)
    await plugin.start()
    try:
        (finder,) = plugin.finders
        return await getattr(plugin, finder.method)(*[given.get(kind) for kind in finder.inputs])
    finally:
        await plugin.close()


async def run(count: int, only: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        clock = SystemClock()
        state = SqliteState(directory / "state", clock)
        await state.start()
        services = Services(dns(), state, clock, FakeDirectory(), "mx.example.org", "mx.example.org")
        # A client that has waited for its greeting before.
        await state.put(f"pregreet {_CLIENT}", b"1", 3600)
        print("| plugin | microseconds |\n|---|---|")
        for shown, plugin, options in rows(directory):
            if only and only not in shown:
                continue
            # Whoever comes first pays for imports and caches of all.
            await microseconds(plugin, options, services, 5)
            cost = await microseconds(plugin, options, services, count)
            print(f"| {shown} | {cost:,.0f} |", flush=True)
        await state.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-plugins", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--count", type=int, default=200, help="messages per round")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    options = parser.parse_args()
    asyncio.run(run(options.count, options.only))


if __name__ == "__main__":
    main()
