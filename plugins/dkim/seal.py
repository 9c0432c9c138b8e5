"""The plugin `arc-seal`: adds an ARC set, for mail stores behind us that believe our seal.

The set says what we found (`Spf`, `Dkim`, `Dmarc`, `Arc`, `ReverseName`, as far as the pipeline has them) and how the
chain was when the message came. It is made of the message as the entries before this one left it.

*Fails by*: not starting, when the key cannot be used. A chain that is over, or of which nobody knows whether it holds,
is left as it is: the next one can look for itself.

*RFCs*: 8617 section 5.1, 8601.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from pydantic import Field, field_validator, model_validator

from gateway.sdk import (
    PROCEED,
    AddHeader,
    Arc,
    AuthResult,
    Dkim,
    Dmarc,
    Finding,
    Message,
    Plugin,
    PluginOptions,
    Policy,
    ReverseName,
    Session,
    Size,
    Spf,
    Stage,
    Verdict,
    acts,
    annotate,
    authentication_results,
)
from plugins.dkim import chain
from plugins.dkim.body import HeaderSectionError, body_hashes
from plugins.dkim.canonical import relaxed_field
from plugins.dkim.chain import MAX_INSTANCE, ChainError
from plugins.dkim.fields import Fields
from plugins.dkim.meters import SEALED
from plugins.dkim.private import Ed25519Key, check_domain, load_key
from plugins.dkim.wording import DEFAULT_HEADERS, Wording, b64, check_headers, signed_names

_NEVER: Final = frozenset(
    {
        "return-path",
        "received",
        "authentication-results",
        "arc-seal",
        "arc-message-signature",
        "arc-authentication-results",
        "bcc",
        "resent-bcc",
    }
)


class ArcSealOptions(PluginOptions):
    """Options of `arc-seal`."""

    domain: str = Field(description="The sealing domain (d=).")
    selector: str = Field(max_length=63, description="The selector (s=) under which the public key is published.")
    key_file: str = Field(description="File with the private RSA key, not readable by everybody.")
    headers: tuple[str, ...] | None = Field(
        None, description="Fields that are signed; null: those of RFC 6376 section 5.4.1, and DKIM-Signature."
    )
    seal_trusted: bool = Field(False, description="Seal what trusted clients send, too.")
    max_size: Size = Field(64 << 20, gt=0, description="Larger messages are not sealed.")
    threads: int = Field(2, ge=1, le=64, description="Long bodies that are hashed at once, per worker.")

    @field_validator("domain", "selector")
    @classmethod
    def _ascii(cls, value: str) -> str:
        return check_domain(value)

    @field_validator("headers")
    @classmethod
    def _lower(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else check_headers(value, _NEVER)

    @model_validator(mode="after")
    def _from_is_signed(self) -> ArcSealOptions:
        if "from" not in self.signed_headers:
            raise ValueError("headers must hold from (RFC 6376 section 5.4)")
        return self

    @property
    def signed_headers(self) -> tuple[str, ...]:
        """Names of the fields that are signed."""
        return (*DEFAULT_HEADERS, "dkim-signature") if self.headers is None else self.headers


@dataclass(frozen=True, slots=True)
class ArcSealed(Finding):
    """The values of an ARC set that was made for the message, and why there is none where there might be one.

    `cv` is what its seal says of the chain before it.
    """

    instance: int = 0
    cv: str = ""
    seal: str = ""
    message_signature: str = ""
    results: str = ""
    problem: str = ""


class ArcSealPolicy(Policy):
    """Put the set on top of the message."""

    name = "arc-seal"
    Options = ArcSealOptions
    options: ArcSealOptions

    def on_message(self, sealed: ArcSealed) -> Verdict:
        if not sealed.seal:
            return PROCEED
        return annotate(
            AddHeader("ARC-Authentication-Results", sealed.results),
            AddHeader("ARC-Message-Signature", sealed.message_signature),
            AddHeader("ARC-Seal", sealed.seal),
        )


class ArcSealPlugin(Plugin):
    """Seals messages."""

    name = "arc-seal"
    Options = ArcSealOptions
    policy = ArcSealPolicy
    timeout = 20.0
    signs = True
    options: ArcSealOptions

    async def start(self) -> None:
        self._threads = ThreadPoolExecutor(self.options.threads, thread_name_prefix="arc-seal")
        self._key = await asyncio.to_thread(load_key, self.options.key_file)
        if isinstance(self._key, Ed25519Key):
            raise ValueError(f"{self.options.key_file} is an Ed25519 key, which ARC verifiers do not know: use RSA")

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @acts(Stage.MESSAGE)
    async def seal(
        self,
        session: Session,
        message: Message,
        spf: Spf | None,
        dkim: Dkim | None,
        dmarc: Dmarc | None,
        arc: Arc | None,
        name: ReverseName | None,
    ) -> ArcSealed:
        """Seal it, unless the chain is over or nobody knows how it stands."""
        if session.trusted and not self.options.seal_trusted:
            return ArcSealed()
        if message.content.size > self.options.max_size:
            return ArcSealed(problem="message is too large to be sealed")
        fields = Fields(message.fields)
        try:
            instance, cv = _continue(fields, arc)
            bodies = await body_hashes(message, [(True, None)], self._threads)
        except (ChainError, HeaderSectionError) as error:
            return ArcSealed(problem=str(error))
        findings = [found for found in (spf, dkim, dmarc, arc, name) if found is not None]
        return self._make(fields, instance, cv, bodies[True, None][0], findings)

    def _make(self, fields: Fields, instance: int, cv: str, body_hash: bytes, findings: Sequence[Finding]) -> ArcSealed:
        options = self.options
        now = str(int(self.services.clock.now()))
        authserv_id = self.services.authserv_id
        results = f"i={instance}; {authentication_results(authserv_id, findings) or f'{authserv_id}; none'}"
        names = signed_names(fields, options.signed_headers)
        wording = Wording("ARC-Message-Signature", f"i={instance}")
        for tag, value in (("a", self._key.algorithm), ("c", "relaxed/relaxed"), ("d", options.domain)):
            wording.tag(tag, value)
        wording.tag("s", options.selector)
        wording.tag("t", now)
        wording.names(names)
        wording.tag("bh", b64(body_hash))
        signature = wording.sign(self._key, fields.signed(names, relaxed=True), relaxed=True)
        wording = Wording("ARC-Seal", f"i={instance}")
        for tag, value in (("a", self._key.algorithm), ("cv", cv), ("d", options.domain), ("s", options.selector)):
            wording.tag(tag, value)
        wording.tag("t", now)
        before: list[bytes] = []
        # A seal over a chain that failed covers its own set only (section 5.1.2).
        for places in chain.arc_sets(fields) if cv == "pass" else ():
            before += [fields.form(p, relaxed=True) for p in (places.results, places.message, places.seal)]
        own = [_field("ARC-Authentication-Results", results), _field("ARC-Message-Signature", signature)]
        seal = wording.sign(self._key, [*before, *map(relaxed_field, own)], relaxed=True)
        SEALED.labels(cv).inc()
        return ArcSealed(instance, cv, seal, signature, results)


def _field(name: str, value: str) -> bytes:
    return f"{name}: {value}\n".replace("\n", "\r\n").encode("utf-8", "surrogateescape")


def _continue(fields: Fields, arc: Arc | None) -> tuple[int, str]:
    """Our instance and cv=. Raises `ChainError` when there is nothing to be added."""
    if not chain.present(fields):
        return 1, "none"
    if arc is None or arc.result not in (AuthResult.PASS, AuthResult.FAIL):
        raise ChainError("the chain was not validated: list the plugin arc before this one")
    try:
        sets = chain.arc_sets(fields)
    except ChainError:
        instance = chain.highest(fields) + 1
    else:
        instance = len(sets) + 1
        if chain.seal_status(fields, sets[-1]) == "fail":
            raise ChainError("the chain failed before")
    if instance > MAX_INSTANCE:
        raise ChainError(f"the chain has {MAX_INSTANCE} sets")
    if arc.result is AuthResult.PASS:
        return instance, "pass"
    return instance, "fail"
