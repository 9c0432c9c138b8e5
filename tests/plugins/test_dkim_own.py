"""What Gatepost writes itself is signed by `dkim-sign`; dkimpy is the judge."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.app.signing import OwnSigner
from gateway.mail.envelope import MailParameters, Ret
from gateway.ops import metrics
from gateway.pipeline.loader import Catalog, Pipeline, load
from gateway.queue import dsn
from gateway.queue.dsn import Original, Writer
from gateway.queue.lifecycle import Action, Report
from gateway.sdk import AddHeader, Message, Plugin
from plugins.dkim.sign import DkimSignPlugin
from tests.pipeline.setting import services
from tests.plugins.test_dkim_sign import KEYS, verified
from tests.queue.rig import CONTENT, START, address, recipient, stored

CATALOG = Catalog({"dkim-sign": DkimSignPlugin}, {})


def entry(folder: Path, **options: Any) -> dict[str, Any]:
    keys = [{"selector": name, "key_file": KEYS[name].write(folder / name)} for name in ("r", "e")]
    return {"dkim-sign": {"domains": {"example.org": {"keys": keys, **options}}}}


def report(author: str | None, content: bytes = CONTENT) -> bytes:
    """A DSN with all of a message."""
    writer = Writer("mx.example.org", 432000.0, address(author) if author else None)
    failed = Report(recipient("anna@example.org"), Action.FAILED, "550 5.1.1 no such user", "store.example.org", True)
    message = stored(parameters=MailParameters(ret=Ret.FULL))
    return dsn.write("D1", message, [failed], Original(content, True), START, writer).content


def signed(content: bytes, *pipelines: Pipeline) -> bytes:
    async def main() -> bytes:
        for pipeline in pipelines:
            await pipeline.start()
        try:
            return await OwnSigner({str(n): pipeline for n, pipeline in enumerate(pipelines)}).sign(content)
        finally:
            for pipeline in pipelines:
                await pipeline.close()

    return asyncio.run(main())


def made(*entries: Any, known: Catalog = CATALOG) -> Pipeline:
    return load("default", list(entries), services(), known=known)


def unsigned() -> float:
    return metrics.OWN_SIGNATURES.labels("unsigned")._value.get()


@pytest.mark.parametrize("content", [CONTENT, CONTENT + "Grüße\r\n".encode() + b"x\r\n" * 30_000])
def test_a_dsn_is_signed_with_every_key_of_its_authors_domain(tmp_path: Path, content: bytes) -> None:
    plain = report("MAILER-DAEMON@example.org", content)
    full = signed(plain, made(entry(tmp_path)))
    assert full.endswith(plain) and full.count(b"DKIM-Signature:") == 2
    assert verified(full) == [True, True]
    assert b"d=example.org;" in full


def test_an_author_at_our_host_is_signed_for_where_the_key_takes_subdomains(tmp_path: Path) -> None:
    full = signed(report(None), made(entry(tmp_path, subdomains=True)))
    assert verified(full) == [True, True] and b"From: Mail Delivery System <MAILER-DAEMON@mx.example.org>\r\n" in full


def test_an_author_without_a_key_leaves_unsigned_and_that_is_counted(tmp_path: Path) -> None:
    before = unsigned()
    plain = report(None)
    assert signed(plain, made(entry(tmp_path))) == plain
    assert unsigned() == before + 1


def test_an_entry_in_shadow_signs_nothing_and_the_next_pipeline_is_asked(tmp_path: Path) -> None:
    plain = report("a@example.org")
    shadow = made({**entry(tmp_path), "shadow": True})
    assert signed(plain, shadow) == plain
    other = tmp_path / "other"
    other.mkdir()
    assert verified(signed(plain, shadow, made(entry(other)))) == [True, True]
    one = signed(plain, made(entry(tmp_path)), made(entry(other)))
    assert one.count(b"DKIM-Signature:") == 2, "the second pipeline does not sign it again"


class Broken(Plugin):
    """Fails to sign."""

    name = "broken"
    signs = True

    async def sign_own(self, message: Message) -> list[AddHeader]:
        raise RuntimeError("no")


class Slow(Plugin):
    """Never comes to an end."""

    name = "slow"
    signs = True
    timeout = 0.01

    async def sign_own(self, message: Message) -> list[AddHeader]:
        await asyncio.Event().wait()
        return []


class Nonsense(Plugin):
    """Gives what is no header field."""

    name = "nonsense"
    signs = True

    async def sign_own(self, message: Message) -> list[AddHeader]:
        return ["DKIM-Signature: x"]  # type: ignore[list-item]


@pytest.mark.parametrize("broken", [Broken, Slow, Nonsense])
def test_a_plugin_that_fails_costs_the_signature_and_not_the_dsn(broken: type[Plugin]) -> None:
    before = unsigned()
    plain = report("a@example.org")
    assert signed(plain, made(broken.name, known=Catalog({broken.name: broken}, {}))) == plain
    assert unsigned() == before + 1


def test_where_nobody_signs_nothing_is_counted() -> None:
    before = unsigned()
    plain = report(None)
    assert signed(plain, made()) == plain
    assert unsigned() == before
