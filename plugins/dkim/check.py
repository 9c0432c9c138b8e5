"""Whether a signature holds, once its key and the body's hash are there.

*RFCs*: 6376 sections 3.7 and 6.1, 8301 section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.sdk import AuthResult
from plugins.dkim.canonical import relaxed_field, simple_field
from plugins.dkim.fields import Fields
from plugins.dkim.keys import KeyAnswer, KeyRecordError, PublicKey, parse_key, sha256
from plugins.dkim.signature import ALGORITHMS, Signature


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of a signature; `bits` is 0 when no key was there to be used."""

    result: AuthResult
    problem: str = ""
    bits: int = 0
    testing: bool = False


def header_hash(fields: Fields, signature: Signature) -> Any:
    """The hash object that b= signs: the fields that h= names, and the signature's own field without its b=."""
    own = relaxed_field(signature.bare) if signature.relaxed else simple_field(signature.bare)
    signed = fields.signed(signature.names, relaxed=signature.relaxed, leave_out=signature.place)
    return sha256(*signed, own.removesuffix(b"\r\n"))


def check(
    signature: Signature, answer: KeyAnswer, digest: Callable[[], Any], body: tuple[bytes, int] | None, min_bits: int
) -> Checked:
    """Try the keys one after the other: the first that fits decides, else what the first one came to.

    `digest` gives the hash object that b= signs; `body` is the body's hash and its canonical size, None where only
    fields are signed (a seal).
    """
    if not answer.records:
        return Checked(answer.result, answer.problem)
    if body is not None and body[0] != signature.body_hash:
        return Checked(AuthResult.FAIL, "body was changed")
    if body is not None and signature.length is not None and signature.length > body[1]:
        return Checked(AuthResult.FAIL, "body is shorter than l=")
    first: Checked | None = None
    hashed: Any = None
    for record in answer.records:
        try:
            key = parse_key(record)
            _fits(signature, key)
        except KeyRecordError as error:
            first = first or Checked(AuthResult.PERMERROR, str(error))
            continue
        hashed = hashed or digest()
        if key.verifies(hashed, signature.value):
            return _accepted(signature, key, min_bits)
        first = Checked(AuthResult.FAIL, "signed fields were changed", key.bits, key.testing)
    assert first is not None
    return first


def _fits(signature: Signature, key: PublicKey) -> None:
    if ALGORITHMS[signature.algorithm] != key.kind:
        raise KeyRecordError("key is of another type than a= says")
    if key.exact and signature.identity and signature.identity.rpartition("@")[2] != signature.domain:
        raise KeyRecordError("key allows i= in d= itself only")


def _accepted(signature: Signature, key: PublicKey, min_bits: int) -> Checked:
    """It holds; local policy may still not let it count."""
    if key.kind == "rsa" and key.bits < min_bits:
        return Checked(AuthResult.POLICY, f"key has {key.bits} bits", key.bits, key.testing)
    if signature.length is not None:
        return Checked(AuthResult.POLICY, "l= leaves the body open", key.bits, key.testing)
    return Checked(AuthResult.PASS, "", key.bits, key.testing)
