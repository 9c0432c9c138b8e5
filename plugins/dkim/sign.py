"""The plugin `dkim-sign`: signs the mail of our own senders, and what Gatepost itself writes.

Ours is who may relay through us (`session.trusted`); what strangers send is never signed, whatever its From says. The
domain is that of From. The message is signed as the entries before this one left it, so list it after those that edit.

*Fails by*: not starting, when a key cannot be used. A message that cannot be signed goes on unsigned, and the record
says why.

*RFCs*: 6376 section 5, 8301, 8463.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pydantic import Field, field_validator, model_validator

from gateway.sdk import (
    PROCEED,
    AddHeader,
    Duration,
    Finding,
    Message,
    OptionsModel,
    Plugin,
    PluginOptions,
    Policy,
    Session,
    Size,
    Stage,
    Verdict,
    acts,
    annotate,
    get_logger,
    read_mailboxes,
)
from gateway.sdk.lint import Check, Remark, Setting, Severity
from plugins.dkim.body import HeaderSectionError, body_hashes
from plugins.dkim.fields import Fields
from plugins.dkim.meters import SIGNED
from plugins.dkim.private import PrivateKey, check_domain, load_key
from plugins.dkim.wording import DEFAULT_HEADERS, Wording, b64, check_headers, signed_names

_log = get_logger()
_FROM_OCTETS: Final = 4096

NOBODY: Final = Check("dkim-sign/nobody", Severity.WARNING, "there is nobody whose mail would be signed")


class Canonical(StrEnum):
    """c= as it is written: header, then body."""

    RELAXED = "relaxed/relaxed"
    RELAXED_SIMPLE = "relaxed/simple"
    SIMPLE_RELAXED = "simple/relaxed"
    SIMPLE = "simple/simple"


class SigningKey(OptionsModel):
    """One key of a domain."""

    selector: str = Field(max_length=63, description="The selector (s=) under which the public key is published.")
    key_file: str = Field(description="File with the private key: RSA or Ed25519, not readable by everybody.")
    domain: str = Field("", description="The signing domain (d=). Default: the domain of From that is signed for.")

    @field_validator("selector", "domain")
    @classmethod
    def _ascii(cls, value: str) -> str:
        return check_domain(value) if value else value


class DomainOptions(OptionsModel):
    """One From domain. Written as a list of keys, or as one key, subdomains are not signed for."""

    keys: tuple[SigningKey, ...] = Field(
        min_length=1, max_length=4, description="Each key makes a signature; RSA and Ed25519 side by side are usual."
    )
    subdomains: bool = Field(False, description="Sign for the names below this domain, too.")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"keys": value}
        if isinstance(value, dict) and "keys" not in value and "selector" in value:
            return {"keys": [value]}
        return value


class DkimSignOptions(PluginOptions):
    """Options of `dkim-sign`."""

    domains: dict[str, DomainOptions] = Field(
        min_length=1, max_length=10_000, description="From domain -> its keys (`selector`, `key_file`, `domain`)."
    )
    headers: tuple[str, ...] | None = Field(
        None,
        description="Fields that are signed, as often as they are there; null: those of RFC 6376 section 5.4.1, "
        "RFC 8460 section 5.3 and RFC 8689 section 5.",
    )
    oversign: tuple[str, ...] = Field(
        ("from",), description="Of these, fields that are signed once more, so that nobody can add another."
    )
    canonicalization: Canonical = Field(Canonical.RELAXED, description="Form of header and body that is signed.")
    expiry: Duration | None = Field(None, gt=0, description="The signature is good for so long (x=); null: for ever.")
    max_size: Size = Field(64 << 20, gt=0, description="Larger messages are not signed.")
    threads: int = Field(2, ge=1, le=64, description="Long bodies that are hashed at once, per worker.")

    @field_validator("domains")
    @classmethod
    def _names(cls, value: dict[str, DomainOptions]) -> dict[str, DomainOptions]:
        return {check_domain(name): options for name, options in value.items()}

    @field_validator("headers", "oversign")
    @classmethod
    def _lower(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else check_headers(value)

    @model_validator(mode="after")
    def _from_is_signed(self) -> DkimSignOptions:
        if "from" not in self.signed_headers:
            raise ValueError("headers must hold from (RFC 6376 section 5.4)")
        if stray := set(self.oversign) - set(self.signed_headers):
            raise ValueError(f"oversign names what headers does not: {', '.join(sorted(stray))}")
        return self

    @property
    def signed_headers(self) -> tuple[str, ...]:
        """Names of the fields that are signed."""
        return DEFAULT_HEADERS if self.headers is None else self.headers


@dataclass(frozen=True, slots=True)
class DkimSigned(Finding):
    """DKIM-Signature values that were made for the message, and why there are none where there might be some."""

    signatures: tuple[str, ...] = ()
    domain: str = ""
    problem: str = ""


class DkimSignPolicy(Policy):
    """Put the signatures on top of the message."""

    name = "dkim-sign"
    Options = DkimSignOptions
    options: DkimSignOptions

    def on_message(self, signed: DkimSigned) -> Verdict:
        if not signed.signatures:
            return PROCEED
        return annotate(*(AddHeader("DKIM-Signature", value) for value in signed.signatures))


class DkimSignPlugin(Plugin):
    """Signs mail of trusted clients."""

    name = "dkim-sign"
    Options = DkimSignOptions
    policy = DkimSignPolicy
    timeout = 20.0
    signs = True
    checks = (NOBODY,)
    options: DkimSignOptions

    def lint(self, setting: Setting) -> Iterable[Remark]:
        if not setting.relays:
            yield Remark(
                NOBODY,
                (),
                "dkim-sign signs mail of clients in relay_from, and nobody is in it",
                "anna sends through us, and her mail leaves without a signature",
                "list your own senders in relay_from, or leave dkim-sign out",
            )

    async def start(self) -> None:
        self._threads = ThreadPoolExecutor(self.options.threads, thread_name_prefix="dkim-sign")
        paths = {key.key_file for options in self.options.domains.values() for key in options.keys}
        self._keys = {path: await asyncio.to_thread(load_key, path) for path in sorted(paths)}

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @acts(Stage.MESSAGE)
    async def sign(self, session: Session, message: Message) -> DkimSigned:
        """Sign it when a trusted client sent it and From is of a domain that has keys."""
        return await self._sign(message) if session.trusted else DkimSigned()

    async def sign_own(self, message: Message) -> tuple[AddHeader, ...]:
        signed = await self._sign(message)
        if signed.problem:
            _log.info("dkim.own_unsigned", domain=signed.domain, reason=signed.problem)
        return tuple(AddHeader("DKIM-Signature", value) for value in signed.signatures)

    async def _sign(self, message: Message) -> DkimSigned:
        domain = author_domain(message)
        if not domain:
            return DkimSigned(problem="From is not one address")
        name, options = self._domain(domain)
        if options is None:
            return DkimSigned(domain=domain, problem="no key for this domain")
        if message.content.size > self.options.max_size:
            return DkimSigned(domain=domain, problem="message is too large to be signed")
        relaxed_body = self.options.canonicalization.value.endswith("/relaxed")
        try:
            bodies = await body_hashes(message, [(relaxed_body, None)], self._threads)
        except HeaderSectionError as error:
            return DkimSigned(domain=domain, problem=str(error))
        body_hash = bodies[relaxed_body, None][0]
        fields = Fields(message.fields)
        made = tuple(self._signature(fields, key, name, domain, body_hash) for key in options.keys)
        return DkimSigned(made, domain)

    def _domain(self, domain: str) -> tuple[str, DomainOptions | None]:
        """The entry for a From domain: its own, or that of the nearest domain above that takes subdomains."""
        if (options := self.options.domains.get(domain)) is not None:
            return domain, options
        above = domain
        while "." in above:
            above = above.partition(".")[2]
            options = self.options.domains.get(above)
            if options is not None and options.subdomains:
                return above, options
        return "", None

    def _signature(self, fields: Fields, key: SigningKey, name: str, author: str, body_hash: bytes) -> str:
        private: PrivateKey = self._keys[key.key_file]
        options = self.options
        now = int(self.services.clock.now())
        signer = key.domain or name
        wording = Wording("DKIM-Signature", "v=1")
        wording.tag("a", private.algorithm)
        wording.tag("c", options.canonicalization.value)
        wording.tag("d", signer)
        if author != signer and author.endswith("." + signer):
            wording.tag("i", f"@{author}")
        wording.tag("s", key.selector)
        wording.tag("t", str(now))
        if options.expiry is not None:
            wording.tag("x", str(now + int(options.expiry)))
        names = signed_names(fields, options.signed_headers, options.oversign)
        wording.names(names)
        wording.tag("bh", b64(body_hash))
        relaxed = options.canonicalization.value.startswith("relaxed/")
        SIGNED.labels(private.algorithm).inc()
        return wording.sign(private, fields.signed(names, relaxed=relaxed), relaxed=relaxed)


def author_domain(message: Message) -> str:
    """The domain of From in A-labels; empty unless there is one From field with one address."""
    values = message.all("from")
    if len(values) != 1 or len(values[0]) > _FROM_OCTETS:
        return ""
    # The standard library's reader goes as deep as comments and groups do, and has no bottom.
    mailboxes = read_mailboxes(values)
    if len(mailboxes) != 1:
        return ""
    try:
        return check_domain(mailboxes[0].domain)
    except ValueError:
        return ""
