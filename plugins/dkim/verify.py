"""The plugin `dkim`: which of a message's DKIM signatures hold.

*Promises*: at most `signatures` fields are looked at, each bounded in octets and tags; keys come through the configured
nameservers and nowhere else; the body is read once for all of them, in blocks. A signature never passes when From is
not signed or stands twice, when it is over, when it leaves the body open (l=) or was made with what does not count any
more (rsa-sha1, keys under `min_bits`).

*Fails by*: results. DNS trouble is *temperror*, a key that is not there *permerror*; neither is our failure.

*RFCs*: 6376, 8301, 8463, 6008; 7372 section 3.1 (X.7.20).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from pydantic import Field

from gateway.sdk import (
    PROCEED,
    AuthResult,
    Dkim,
    DkimSignature,
    Duration,
    Message,
    Plugin,
    PluginOptions,
    Policy,
    Size,
    Stage,
    Verdict,
    defer,
    finds,
    reject,
)
from plugins.dkim.body import INLINE_OCTETS, Form, HeaderSectionError, body_hashes
from plugins.dkim.check import Checked, check, header_hash
from plugins.dkim.fields import Fields
from plugins.dkim.keys import KeyAnswer, fetch_keys
from plugins.dkim.meters import SIGNATURES
from plugins.dkim.signature import SHORT, Kind, Signature, SignatureError, describe, read_signature, read_tags

_NOTHING: Final = DkimSignature(AuthResult.PERMERROR, "")


class DkimOptions(PluginOptions):
    """Options of `dkim`."""

    signatures: int = Field(5, ge=1, le=50, description="Signatures that are looked at, top down; others do not count.")
    min_bits: int = Field(1024, ge=1024, le=4096, description="Shorter RSA keys do not count.")
    max_size: Size = Field(64 << 20, gt=0, description="Larger messages are not checked: neutral.")
    timeout: Duration = Field(10.0, gt=0, description="Time for a message, keys and body together.")
    skew: Duration = Field(300.0, description="How far a signer's clock may be off.")
    threads: int = Field(2, ge=1, le=64, description="Long bodies that are hashed at once, per worker.")
    reject_fail: bool = Field(
        False, description="Refuse when signatures fail and none passes. RFC 6376 advises against it; use DMARC."
    )
    reject_none: bool = Field(False, description="Refuse when there is no signature at all.")
    defer_temperror: bool = Field(
        False, description="Refuse for now when a key cannot be had and no other signature passes."
    )


class DkimPolicy(Policy):
    """Refuse by DKIM alone, as far as the options ask for it; by default nothing."""

    name = "dkim"
    Options = DkimOptions
    options: DkimOptions

    def on_message(self, dkim: Dkim) -> Verdict:
        options = self.options
        if dkim.passed:
            return PROCEED
        if not dkim.signatures:
            if options.reject_none:
                return reject("7.20", "a DKIM signature is required", reason="no signature")
            return PROCEED
        reason = "; ".join(f"{s.domain}: {s.problem or s.result}" for s in dkim.signatures)
        if any(s.result is AuthResult.TEMPERROR for s in dkim.signatures):
            if options.defer_temperror:
                return defer("7.20", "the signature cannot be checked now, try again later", reason=reason)
        # A key in test mode must not make mail worse than unsigned (RFC 6376 section 3.6.1, t=y).
        elif options.reject_fail and any(s.result is AuthResult.FAIL and not s.testing for s in dkim.signatures):
            return reject("7.20", "no DKIM signature of this message holds", reason=reason)
        return PROCEED


class DkimPlugin(Plugin):
    """Verifies DKIM signatures."""

    name = "dkim"
    Options = DkimOptions
    policy = DkimPolicy
    timeout = 20.0
    options: DkimOptions

    async def start(self) -> None:
        self._threads = ThreadPoolExecutor(self.options.threads, thread_name_prefix="dkim")

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def patience(self) -> float:
        return self.options.timeout

    @finds(Stage.MESSAGE)
    async def verify(self, message: Message) -> Dkim:
        """All signatures of the message as it was received."""
        fields = Fields(message.fields)
        places = fields.named("dkim-signature")
        if not places:
            SIGNATURES.labels(AuthResult.NONE.value).inc()
            return Dkim()
        looked = places[: self.options.signatures]
        described, sound = self._read(fields, looked)
        if problem := self._unfit(message, fields):
            described = [
                replace(s, result=problem.result, problem=str(problem)) if i in sound else s
                for i, s in enumerate(described)
            ]
            sound = {}
        if sound:
            checked = await self._check(message, fields, list(sound.values()))
            for at, came in zip(sound, checked, strict=True):
                described[at] = replace(
                    described[at],
                    result=came.result,
                    problem=came.problem,
                    key_bits=came.bits,
                    testing=came.testing,
                )
        for found in described:
            SIGNATURES.labels(found.result.value).inc()
        return Dkim(tuple(_tell_apart(described, fields, looked)), len(places) - len(looked))

    def _read(self, fields: Fields, places: Sequence[int]) -> tuple[list[DkimSignature], dict[int, Signature]]:
        """What each field says of itself, and those, by their number, that are worth a look-up."""
        described: list[DkimSignature] = []
        sound: dict[int, Signature] = {}
        now = self.services.clock.now()
        for at, place in enumerate(places):
            said = _NOTHING
            try:
                tags, start = read_tags(fields.raw(place))
                said = describe(tags)
                signature = read_signature(fields.raw(place), place, Kind.DKIM, tags, start)
                said = replace(said, domain=signature.domain, selector=signature.selector, identity=signature.identity)
                signature.check_time(now, self.options.skew)
                sound[at] = signature
            except SignatureError as error:
                said = replace(said, result=error.result, problem=str(error))
            described.append(said)
        return described, sound

    def _unfit(self, message: Message, fields: Fields) -> SignatureError | None:
        """Why no signature of this message can hold, or is looked at."""
        authors = len(fields.named("from"))
        if authors != 1:
            return SignatureError("several From fields" if authors else "no From field", AuthResult.FAIL)
        if message.content.size > self.options.max_size:
            return SignatureError("message is too large to be checked", AuthResult.NEUTRAL)
        return None

    async def _check(self, message: Message, fields: Fields, signatures: list[Signature]) -> list[Checked]:
        """Keys and body are had side by side; then each signature is decided."""
        deadline = asyncio.get_running_loop().time() + self.options.timeout
        names = {signature.key_name for signature in signatures}
        forms = {signature.form for signature in signatures}
        asking = fetch_keys(self.services.dns, names, deadline)
        if message.content.size > INLINE_OCTETS:
            keys, bodies = await asyncio.gather(asking, self._bodies(message, forms, deadline))
        else:
            # A short body takes less time than a task does.
            keys, bodies = await asking, await self._bodies(message, forms, deadline)
        return [self._decide(fields, signature, keys[signature.key_name], bodies) for signature in signatures]

    def _decide(
        self,
        fields: Fields,
        signature: Signature,
        key: KeyAnswer,
        bodies: Mapping[Form, tuple[bytes, int]] | Checked,
    ) -> Checked:
        if isinstance(bodies, Checked):
            return bodies
        return check(
            signature, key, lambda: header_hash(fields, signature), bodies[signature.form], self.options.min_bits
        )

    async def _bodies(
        self, message: Message, forms: set[Form], deadline: float
    ) -> Mapping[Form, tuple[bytes, int]] | Checked:
        try:
            async with asyncio.timeout_at(deadline):
                return await body_hashes(message, forms, self._threads)
        except TimeoutError:
            return Checked(AuthResult.TEMPERROR, "body was not hashed in time")
        except HeaderSectionError as error:
            return Checked(AuthResult.FAIL, str(error))


def _tell_apart(described: list[DkimSignature], fields: Fields, places: Sequence[int]) -> list[DkimSignature]:
    """Lengthen header.b where two signatures begin alike (RFC 6008 section 4)."""
    shorts = [s.short for s in described]
    if len(set(shorts)) == len(shorts):
        return described
    out: list[DkimSignature] = []
    for said, place in zip(described, places, strict=True):
        if said.short and shorts.count(said.short) > 1:
            whole = read_tags(fields.raw(place))[0].compact("b")
            said = replace(said, short=whole[: 4 * SHORT])
        out.append(said)
    return out
