"""The plugin `arc`: whether a message's ARC chain holds, who sealed it, and what those report whom we trust.

A valid chain proves nothing by itself: anybody can seal. It counts for as much as its sealers are trusted, beginning
with the newest.

*Promises*: at most 50 sets and `lookups` key names, all keys at once, through the configured nameservers; the body is
read once. Fields are put in order by their instance, wherever they stand.

*Fails by*: results. DNS trouble is *temperror* here; RFC 8617 section 5.2.1 would make it a failure for ever.

*RFCs*: 8617 sections 4 and 5.2, 8601.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import Field, field_validator

from gateway.sdk import (
    PROCEED,
    Arc,
    AuthResult,
    Duration,
    Message,
    Plugin,
    PluginOptions,
    Policy,
    Size,
    Stage,
    Verdict,
    finds,
    reject,
)
from plugins.dkim import chain
from plugins.dkim.body import Form, HeaderSectionError, body_hashes
from plugins.dkim.chain import ArcSet, ChainError, Hop
from plugins.dkim.check import Checked, check, header_hash
from plugins.dkim.fields import Fields
from plugins.dkim.keys import KeyAnswer, fetch_keys
from plugins.dkim.meters import CHAINS
from plugins.dkim.private import check_domain
from plugins.dkim.results import reported
from plugins.dkim.signature import SignatureError


class ArcOptions(PluginOptions):
    """Options of `arc`."""

    trusted: frozenset[str] = Field(frozenset(), description="Sealers (d=) whose reported results are believed.")
    lookups: int = Field(
        8, ge=1, le=100, description="Keys that are asked for; a chain that needs more is not checked: neutral."
    )
    min_bits: int = Field(1024, ge=1024, le=4096, description="Shorter RSA keys do not count.")
    max_size: Size = Field(64 << 20, gt=0, description="Larger messages are not checked: neutral.")
    timeout: Duration = Field(10.0, gt=0, description="Time for a message, keys and body together.")
    skew: Duration = Field(300.0, description="How far a sealer's clock may be off.")
    threads: int = Field(2, ge=1, le=64, description="Long bodies that are hashed at once, per worker.")
    reject_fail: bool = Field(False, description="Refuse when the chain is broken; it is better taken for none.")

    @field_validator("trusted")
    @classmethod
    def _lower(cls, value: frozenset[str]) -> frozenset[str]:
        return frozenset(check_domain(name) for name in value)


class ArcPolicy(Policy):
    """Refuse broken chains where the options ask for it; by default nothing."""

    name = "arc"
    Options = ArcOptions
    options: ArcOptions

    def on_message(self, arc: Arc) -> Verdict:
        if self.options.reject_fail and arc.result is AuthResult.FAIL:
            return reject("7.29", "the ARC chain of this message does not hold", reason=arc.problem)
        return PROCEED


@dataclass(frozen=True, slots=True)
class _Material:
    """What a chain is judged by."""

    fields: Fields
    hops: list[Hop]
    keys: Mapping[str, KeyAnswer]
    bodies: Mapping[Form, tuple[bytes, int]]


class ArcPlugin(Plugin):
    """Validates ARC chains."""

    name = "arc"
    Options = ArcOptions
    policy = ArcPolicy
    timeout = 20.0
    options: ArcOptions

    async def start(self) -> None:
        self._threads = ThreadPoolExecutor(self.options.threads, thread_name_prefix="arc")

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def patience(self) -> float:
        return self.options.timeout

    @finds(Stage.MESSAGE)
    async def validate(self, message: Message) -> Arc:
        """The chain of the message as it was received."""
        found = await self._validate(message)
        CHAINS.labels(found.result.value).inc()
        return found

    async def _validate(self, message: Message) -> Arc:
        fields = Fields(message.fields)
        if not chain.present(fields):
            return Arc(AuthResult.NONE)
        try:
            sets = chain.arc_sets(fields)
        except ChainError as error:
            return Arc(AuthResult.FAIL, problem=str(error))
        try:
            hops = self._read(fields, sets)
        except ChainError as error:
            return Arc(AuthResult.FAIL, problem=str(error))
        sealers = tuple(hop.seal.domain for hop in hops)
        needed = dict.fromkeys([hops[-1].message.key_name, *(hop.seal.key_name for hop in hops)])
        if len(needed) > self.options.lookups:
            # Not a failure: our own limit must not make a seal say cv=fail for ever.
            return Arc(AuthResult.NEUTRAL, sealers, problem=f"chain needs {len(needed)} keys")
        if message.content.size > self.options.max_size:
            return Arc(AuthResult.NEUTRAL, sealers, problem="message is too large to be checked")
        # Keys of older message signatures are extra, as far as the limit goes: they only tell how far back those hold.
        needed |= dict.fromkeys(hop.message.key_name for hop in reversed(hops))
        names = list(needed)[: self.options.lookups]
        deadline = asyncio.get_running_loop().time() + self.options.timeout
        try:
            keys, bodies = await asyncio.gather(
                fetch_keys(self.services.dns, names, deadline),
                self._bodies(message, hops, deadline),
            )
        except HeaderSectionError as error:
            return Arc(AuthResult.FAIL, sealers, problem=str(error))
        except TimeoutError:
            return Arc(AuthResult.TEMPERROR, sealers, problem="body was not hashed in time")
        return self._judge(message, sealers, _Material(fields, hops, keys, bodies))

    def _read(self, fields: Fields, sets: list[ArcSet]) -> list[Hop]:
        """The chain's hops, in order; raises `ChainError` when its form alone says that it fails (section 5.2)."""
        if chain.seal_status(fields, sets[-1]) == "fail":
            raise ChainError("the newest seal says that the chain failed before")
        hops: list[Hop] = []
        for number, places in enumerate(sets, 1):
            try:
                hop = chain.read_hop(fields, places)
            except SignatureError as error:
                raise ChainError(f"instance {number}: {error}") from None
            if hop.seal.cv != ("none" if number == 1 else "pass"):
                raise ChainError(f"instance {number}: cv= is not what it must be")
            hops.append(hop)
        try:
            hops[-1].message.check_time(self.services.clock.now(), self.options.skew)
        except SignatureError as error:
            raise ChainError(f"instance {len(hops)}: {error}") from None
        return hops

    async def _bodies(self, message: Message, hops: list[Hop], deadline: float) -> Mapping[Form, tuple[bytes, int]]:
        # Signatures with l= are not looked at, so there are two forms at most.
        forms = {hop.message.form for hop in hops if hop.message.length is None}
        async with asyncio.timeout_at(deadline):
            return await body_hashes(message, forms, self._threads)

    def _judge(self, message: Message, sealers: tuple[str, ...], material: _Material) -> Arc:
        newest = self._message_signature(material, len(sealers))
        if newest.result is not AuthResult.PASS:
            return _broken(newest, sealers, f"message signature {len(sealers)}")
        seals = self._seals(material)
        for number in range(len(sealers), 0, -1):
            if seals[number - 1].result is not AuthResult.PASS:
                return _broken(seals[number - 1], sealers, f"seal {number}")
        results, trusted = self._believed(message, sealers, material)
        return Arc(AuthResult.PASS, sealers, trusted, results, oldest_pass=self._oldest_pass(material))

    def _message_signature(self, material: _Material, number: int) -> Checked:
        signature = material.hops[number - 1].message
        if signature.length is not None:
            return Checked(AuthResult.FAIL, "l= leaves the body open")
        key = material.keys.get(signature.key_name)
        if key is None:
            return Checked(AuthResult.FAIL, "key was not asked for")
        return check(
            signature,
            key,
            lambda: header_hash(material.fields, signature),
            material.bodies[signature.form],
            self.options.min_bits,
        )

    def _seals(self, material: _Material) -> list[Checked]:
        out: list[Checked] = []
        for hop, digest in zip(material.hops, chain.seal_hashes(material.fields, material.hops), strict=True):
            key = material.keys[hop.seal.key_name]
            out.append(check(hop.seal, key, lambda made=digest: made, None, self.options.min_bits))  # type: ignore[misc]
        return out

    def _oldest_pass(self, material: _Material) -> int:
        """The lowest instance from which on every message signature holds; 0 when all do (section 5.2)."""
        for number in range(len(material.hops) - 1, 0, -1):
            if self._message_signature(material, number).result is not AuthResult.PASS:
                return number + 1
        return 0

    def _believed(
        self, message: Message, sealers: tuple[str, ...], material: _Material
    ) -> tuple[tuple[tuple[str, str, str], ...], bool]:
        """What the oldest sealer reports up to whom all, beginning with the newest, are trusted."""
        number = len(sealers)
        while number and sealers[number - 1] in self.options.trusted:
            number -= 1
        if number == len(sealers):
            return (), False
        return reported(message.fields[material.hops[number].places.results].value), True


def _broken(checked: Checked, sealers: tuple[str, ...], where: str) -> Arc:
    result = AuthResult.TEMPERROR if checked.result is AuthResult.TEMPERROR else AuthResult.FAIL
    return Arc(result, sealers, problem=f"{where}: {checked.problem}")
