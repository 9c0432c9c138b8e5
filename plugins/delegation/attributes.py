"""What Postfix tells a policy server, in its words and its order, from what Gatepost knows.

*Source*: Postfix, SMTPD_POLICY_README and the order in which smtpd 3.7 sends; an attribute of which nothing is known is
sent empty, or as 0 where it is a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.sdk import NULL_SENDER, Address, Message, Recipient, ReverseName, Sender, Session, Stage, Transaction

UNKNOWN: Final = "unknown"
"""Name of a client that has none, or of which nobody asked."""

_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})
_LONG_KEY: Final = re.compile(r"AES_?256|CHACHA20|CAMELLIA_?256|ARIA_?256")
_SHORT_KEY: Final = re.compile(r"AES_?128|CAMELLIA_?128|ARIA_?128|RC4|SEED")


class PostfixVersion(StrEnum):
    """Versions between which the attributes differ; each has those of the ones before it."""

    V3_7 = "3.7"
    V3_8 = "3.8"
    """`compatibility_level` and `mail_version`."""
    V3_12 = "3.12"
    """`tls_sni`."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is known when a policy server is asked."""

    stage: Stage
    session: Session
    name: ReverseName | None = None
    transaction: Transaction | None = None
    recipient: Recipient | None = None
    message: Message | None = None
    context: str = ""

    @property
    def counts_recipients(self) -> bool:
        """Whether all recipients are known."""
        return self.stage in (Stage.DATA, Stage.MESSAGE)


def attributes(question: Question, version: PostfixVersion) -> Iterator[tuple[str, str]]:
    """The attributes of a request, in the order in which this version sends them."""
    newest = _ORDER.index(version)
    for since, name, value in _ATTRIBUTES:
        if _ORDER.index(since) <= newest:
            yield name, value(question)


def _nothing(question: Question) -> str:
    return ""


def _protocol_state(question: Question) -> str:
    match question.stage:
        case Stage.HELO:
            return "EHLO" if question.session.esmtp else "HELO"
        case Stage.MESSAGE:
            return "END-OF-MESSAGE"
    return question.stage.value.upper()


def _client_name(question: Question) -> str:
    """The name that the client's address confirms, or that a trusted XCLIENT gave."""
    return question.session.name or (question.name.name if question.name else "") or UNKNOWN


def _reverse_client_name(question: Question) -> str:
    """The name that PTR gives, confirmed or not."""
    names = question.name.names if question.name else ()
    return question.session.name or (question.name.name if question.name else "") or (names[0] if names else UNKNOWN)


def _server(question: Question) -> tuple[str, str]:
    # The listener's own address; where it listens on all, nobody has noted down which one the client chose.
    host, _, port = question.session.listener.rpartition(":")
    host = host.strip("[]")
    return "" if host in _ANY_ADDRESS else host, port


def _sender(question: Question) -> str:
    return _address(question.transaction.sender) if question.transaction else ""


def _recipient(question: Question) -> str:
    """The one that is asked about; later the only one, where there is only one."""
    if question.recipient is not None:
        return _address(question.recipient.address)
    recipients = question.transaction.recipients if question.transaction else ()
    return _address(recipients[0].address) if question.counts_recipients and len(recipients) == 1 else ""


def _address(address: Sender) -> str:
    """Without quoting, as Postfix has addresses inside."""
    if not isinstance(address, Address):
        assert address is NULL_SENDER
        return ""
    return f"{address.local}@{address.domain}" if address.domain else address.local


def _recipient_count(question: Question) -> str:
    recipients = question.transaction.recipients if question.transaction else ()
    return str(len(recipients)) if question.counts_recipients else "0"


def _queue_id(question: Question) -> str:
    return question.transaction.id if question.transaction else ""


def _instance(question: Question) -> str:
    """One value for all requests about one message; before MAIL there is none."""
    return question.transaction.id if question.transaction else ""


def _size(question: Question) -> str:
    """What there is of the message; before it has come, what the client said at MAIL."""
    if question.message is not None:
        return str(question.message.content.size)
    return str(question.transaction.parameters.size) if question.transaction else "0"


def _keysize(question: Question) -> str:
    cipher = question.session.tls.cipher.upper() if question.session.tls else ""
    if _LONG_KEY.search(cipher):
        return "256"
    return "128" if _SHORT_KEY.search(cipher) else "0"


def _ccert(question: Question, name: str) -> str:
    """A name of the client's certificate, where a CA vouches for it; as Postfix has it, in the manner of RFC 3461."""
    client = question.session.tls.client if question.session.tls else None
    if client is None or not client.verified:
        return ""
    octets = str(getattr(client, name)).encode()
    return "".join(chr(one) if 32 < one < 127 and one != 43 else f"+{one:02X}" for one in octets)


def _ccert_fingerprint(question: Question) -> str:
    """Of whatever certificate was shown: who compares it needs no CA."""
    client = question.session.tls.client if question.session.tls else None
    return client.fingerprint if client else ""


_ORDER: Final = tuple(PostfixVersion)

_ATTRIBUTES: Final[tuple[tuple[PostfixVersion, str, Callable[[Question], str]], ...]] = (
    (PostfixVersion.V3_7, "request", lambda q: "smtpd_access_policy"),
    (PostfixVersion.V3_7, "protocol_state", _protocol_state),
    (PostfixVersion.V3_7, "protocol_name", lambda q: "ESMTP" if q.session.esmtp else "SMTP"),
    (PostfixVersion.V3_7, "client_address", lambda q: str(q.session.client)),
    (PostfixVersion.V3_7, "client_name", _client_name),
    (PostfixVersion.V3_7, "client_port", lambda q: str(q.session.client_port)),
    (PostfixVersion.V3_7, "reverse_client_name", _reverse_client_name),
    (PostfixVersion.V3_7, "server_address", lambda q: _server(q)[0]),
    (PostfixVersion.V3_7, "server_port", lambda q: _server(q)[1]),
    (PostfixVersion.V3_7, "helo_name", lambda q: q.session.helo),
    (PostfixVersion.V3_7, "sender", _sender),
    (PostfixVersion.V3_7, "recipient", _recipient),
    (PostfixVersion.V3_7, "recipient_count", _recipient_count),
    (PostfixVersion.V3_7, "queue_id", _queue_id),
    (PostfixVersion.V3_7, "instance", _instance),
    (PostfixVersion.V3_7, "size", _size),
    (PostfixVersion.V3_7, "etrn_domain", _nothing),
    (PostfixVersion.V3_7, "stress", _nothing),
    (PostfixVersion.V3_7, "sasl_method", _nothing),
    (PostfixVersion.V3_7, "sasl_username", _nothing),
    (PostfixVersion.V3_7, "sasl_sender", _nothing),
    (PostfixVersion.V3_7, "ccert_subject", lambda q: _ccert(q, "subject")),
    (PostfixVersion.V3_7, "ccert_issuer", lambda q: _ccert(q, "issuer")),
    (PostfixVersion.V3_7, "ccert_fingerprint", _ccert_fingerprint),
    (PostfixVersion.V3_7, "ccert_pubkey_fingerprint", _nothing),
    (PostfixVersion.V3_7, "encryption_protocol", lambda q: q.session.tls.version if q.session.tls else ""),
    (PostfixVersion.V3_7, "encryption_cipher", lambda q: q.session.tls.cipher if q.session.tls else ""),
    (PostfixVersion.V3_7, "encryption_keysize", _keysize),
    (PostfixVersion.V3_7, "policy_context", lambda q: q.context),
    (PostfixVersion.V3_8, "compatibility_level", _nothing),
    (PostfixVersion.V3_8, "mail_version", _nothing),
    (PostfixVersion.V3_12, "tls_sni", lambda q: q.session.tls.sni if q.session.tls else ""),
)
"""Since which version, name, value. Nobody proves who he is by SASL, so those attributes are empty; so are the ones
about the Postfix that we are not, and the fingerprint of the key alone."""
