"""Hypothesis strategies: addresses, envelopes, sessions and transactions as the front door would let them in, messages,
and values of whatever type a finding's fields have.

Well formed does not mean tame: local parts are quoted, domains are address literals or written in other scripts, and
texts of findings hold what a stranger may have put into them.

*RFCs*: 5321 section 4.1.2 and 4.1.3 (addresses, literals), 6531 section 3.3 (UTF-8), 3461 section 4 (DSN parameters).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import types
import typing
from enum import Enum
from typing import Any, Final, Literal, TypeVar

from hypothesis import strategies as st

from gateway.kit.message_strategies import damaged_messages, deep_messages, hostile_messages, messages
from gateway.mail.address import NULL_SENDER, Address, AddressError, Sender, parse_mailbox
from gateway.mail.edit import AddHeader, ChangeHeader, DeleteHeader, Prioritize, ReplaceBody, Reroute
from gateway.mail.envelope import Body, Envelope, MailParameters, Notify, Priority, Recipient, Ret
from gateway.mail.message import Content, HeaderField
from gateway.mail.session import ClientCertificate, IPAddress, Session, Tls, base32, transaction_id
from gateway.sdk.fakes import BytesContent
from gateway.sdk.findings import Finding
from gateway.sdk.stage import Transaction

__all__ = [
    "addresses",
    "damaged_messages",
    "deep_messages",
    "domains",
    "envelopes",
    "findings",
    "hostile_messages",
    "local_parts",
    "mail_parameters",
    "messages",
    "recipients",
    "senders",
    "sessions",
    "texts",
    "transactions",
]

_F = TypeVar("_F", bound=Finding)

_ATOM: Final = "abcXYZ019!#$%&'*+-/=?^_`{|}~"
_FOREIGN: Final = "\xe4\xf6\xfc\xdf\xe9\u4e2d\u6587\u0645\u0634\u044f\U0001f4e7"
_QUOTED: Final = ' "\\@,;:<>()[].'
_DOMAINS: Final = (
    "example.org",
    "EXAMPLE.org",
    "sub.example.org",
    "_dmarc.example.org",
    "xn--bcher-kva.example",
    "localhost",
    "a." * 60 + "example",
)
_FOREIGN_DOMAINS: Final = (
    "b\xfccher.example",
    "\u4f8b\u5b50.\u6d4b\u8bd5",
    "stra\xdfe.example",
    "\u043f\u0440\u0438\u043c\u0435\u0440.example",
)
_HOSTILE: Final = (
    "\r\n",
    "\0",
    "\x1b[2J",
    "\u202e",
    "%s%n",
    "<script>",
    "' OR ''='",
    "${x}",
    "x" * 600,
    "\ufeff",
    "=?utf-8?q?=0a?=",
)


def local_parts(*, utf8: bool = True, quoted: bool = True) -> st.SearchStrategy[str]:
    """Local parts without quoting; with `quoted` also those that need it."""
    alphabet = _ATOM + (_FOREIGN if utf8 else "")
    atoms = st.lists(st.text(alphabet, min_size=1, max_size=8), min_size=1, max_size=3).map(".".join)
    odd = st.text(alphabet + _QUOTED, min_size=1, max_size=16)
    return atoms | odd if quoted else atoms


def domains(*, utf8: bool = True, literals: bool = True) -> st.SearchStrategy[str]:
    """Domains: names, with `utf8` in other scripts too, with `literals` address literals too."""
    label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
    kinds = [st.sampled_from(_DOMAINS), st.lists(label, min_size=1, max_size=4).map(".".join)]
    if utf8:
        kinds.append(st.sampled_from(_FOREIGN_DOMAINS))
    if literals:
        kinds.append(st.ip_addresses(v=4).map(lambda ip: f"[{ip}]"))
        kinds.append(st.ip_addresses(v=6).map(lambda ip: f"[IPv6:{ip}]"))
    return st.one_of(kinds)


def addresses(*, utf8: bool = True, quoted: bool = True, literals: bool = True) -> st.SearchStrategy[Address]:
    """Addresses that RFC 5321 allows, with `utf8` those of RFC 6531 too."""
    made = st.builds(Address, local_parts(utf8=utf8, quoted=quoted), domains(utf8=utf8, literals=literals))
    return made.filter(lambda address: _reads_back(address, utf8))


def _reads_back(address: Address, utf8: bool) -> bool:
    try:
        return parse_mailbox(str(address), utf8=utf8) == address
    except AddressError:
        return False


def senders(*, utf8: bool = True) -> st.SearchStrategy[Sender]:
    """Envelope senders, the null sender among them."""
    return st.just(NULL_SENDER) | addresses(utf8=utf8)


def recipients(*, utf8: bool = True) -> st.SearchStrategy[Recipient]:
    """Recipients with what RCPT may ask for; the bare postmaster is not among them."""
    notify = st.just(frozenset({Notify.NEVER})) | st.frozensets(st.sampled_from(sorted(set(Notify) - {Notify.NEVER})))
    orcpt = st.just("") | st.from_regex(r"rfc822;[a-z]{1,8}(\+2B[a-z]{1,3})?@[a-z]{1,8}\.example", fullmatch=True)
    return st.builds(Recipient, addresses(utf8=utf8), notify, orcpt)


def mail_parameters(*, utf8: bool = True) -> st.SearchStrategy[MailParameters]:
    """What MAIL may carry; SMTPUTF8 only with `utf8`."""
    return st.builds(
        MailParameters,
        size=st.just(0) | st.integers(1, 1 << 40),
        body=st.sampled_from(Body),
        smtputf8=st.booleans() if utf8 else st.just(False),
        ret=st.none() | st.sampled_from(Ret),
        envid=st.just("") | st.from_regex(r"[!-*,-<>-~]{1,20}", fullmatch=True),
    )


def envelopes(*, utf8: bool = True, most: int = 5) -> st.SearchStrategy[Envelope]:
    """Envelopes with 1 to `most` recipients, each address once. SMTPUTF8 is said where an address needs it."""
    several = st.lists(recipients(utf8=utf8), min_size=1, max_size=most, unique_by=lambda r: r.address.key).map(tuple)
    made = st.builds(Envelope, senders(utf8=utf8), several, mail_parameters(utf8=utf8))
    return made.map(_said_utf8)


def _said_utf8(envelope: Envelope) -> Envelope:
    paths = [str(envelope.sender), *(str(recipient.address) for recipient in envelope.recipients)]
    needed = envelope.parameters.smtputf8 or not all(map(str.isascii, paths))
    return dataclasses.replace(envelope, parameters=dataclasses.replace(envelope.parameters, smtputf8=needed))


def sessions() -> st.SearchStrategy[Session]:
    """Sessions that have said HELO or EHLO, of clients anywhere."""
    clients: st.SearchStrategy[IPAddress] = st.ip_addresses()
    greetings = domains(utf8=False) | st.sampled_from(["localhost", "[", "-", "a b", "\x7f", "x" * 255, "example.org."])
    return st.builds(
        Session,
        id=st.integers(0, 1 << 50).map(lambda number: base32(number, 13)),
        client=clients,
        client_port=st.integers(1, 65_535),
        peer=clients,
        listener=st.just("127.0.0.1:25"),
        started=st.floats(0, 4e9),
        helo=greetings,
        esmtp=st.booleans(),
        tls=st.none()
        | st.builds(
            Tls,
            st.sampled_from(["TLSv1.2", "TLSv1.3"]),
            st.just("TLS_AES_256_GCM_SHA384"),
            client=st.none() | client_certificates(),
        ),
        name=st.just("") | domains(utf8=False, literals=False),
        trusted=st.booleans(),
    )


def client_certificates() -> st.SearchStrategy[ClientCertificate]:
    """Certificates that clients showed: by whom nobody knows, or with any names that are printable."""
    names = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=64)
    digest = st.binary(min_size=32, max_size=32).map(lambda octets: octets.hex(":").upper())
    return st.builds(
        ClientCertificate, st.just(False), digest, st.just("unable to get issuer cert locally")
    ) | st.builds(
        ClientCertificate,
        st.just(True),
        digest,
        subject=names,
        names=st.lists(names.map("DNS:{}".format), max_size=3).map(tuple),
        issuer=names,
        serial=st.integers(1, 1 << 160).map("{:X}".format),
    )


def transactions(session: st.SearchStrategy[Session] | None = None) -> st.SearchStrategy[Transaction]:
    """Transactions with all recipients accepted, of this session or of any."""

    def make(session: Session, envelope: Envelope, number: int) -> Transaction:
        id = transaction_id(session.id, number)
        return Transaction(id, session, envelope.sender, envelope.parameters, envelope.recipients)

    return st.builds(make, sessions() if session is None else session, envelopes(), st.integers(1, 40))


def texts() -> st.SearchStrategy[str]:
    """Texts that a stranger may have written: of any kind, but always such that UTF-8 can say them."""
    return st.text(max_size=30) | st.sampled_from(_HOSTILE) | domains().map(str)


def findings(kind: type[_F], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[_F]:
    """Findings of this kind, with any values of its fields' types; `fields` are strategies of your own for some.

    Raises TypeError for a field whose type is of no kind that a finding may have. Values that the class itself refuses
    by ValueError are not given.
    """
    unknown = fields.keys() - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    return _dataclass(kind, fields)


def _dataclass(kind: type[Any], given: collections.abc.Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    wanted = {
        field.name: given[field.name]
        if field.name in given
        else _values(hints[field.name], f"{kind.__name__}.{field.name}")
        for field in dataclasses.fields(kind)
        if field.init
    }

    def make(values: dict[str, Any]) -> Any:
        try:
            return kind(**values)
        except ValueError:
            return None

    return st.fixed_dictionaries(wanted).map(make).filter(lambda made: made is not None)


def _values(hint: Any, where: str) -> st.SearchStrategy[Any]:
    """Values of a type; `where` is named in the error."""
    if hint in _KNOWN:
        return _known(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _values(inner[0], where)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([_values(one, where) for one in inner])
    if origin is tuple and inner[1:] == (...,):
        return st.lists(_values(inner[0], where), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*(_values(one, where) for one in inner))
    if origin in (list, collections.abc.Sequence):
        return st.lists(_values(inner[0], where), max_size=4)
    if origin in (frozenset, set):
        return st.frozensets(_values(inner[0], where), max_size=4)
    if origin in (dict, collections.abc.Mapping):
        return st.dictionaries(_values(inner[0], where), _values(inner[1], where), max_size=4)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return st.deferred(lambda: _dataclass(hint, {}))
    raise TypeError(f"{where} is {hint}, of which nothing is known here; give a strategy for it")


@functools.cache
def _known(hint: Any) -> st.SearchStrategy[Any]:
    return _KNOWN[hint]()


def _header_names() -> st.SearchStrategy[str]:
    return st.sampled_from(["Subject", "X-Spam", "From", "received", "X-" + "a" * 70]) | st.from_regex(
        r"[A-Za-z][A-Za-z0-9-]{0,10}", fullmatch=True
    )


def _header_values() -> st.SearchStrategy[str]:
    words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)
    return words | st.lists(words.map(lambda word: f"x{word}"), min_size=2, max_size=3).map("\n ".join)


def _contents() -> st.SearchStrategy[Content]:
    return st.binary(max_size=60).map(BytesContent)


_INDEXES: Final = st.integers(0, 3) | st.just(1 << 30)
_KNOWN: Final[dict[Any, collections.abc.Callable[[], st.SearchStrategy[Any]]]] = {
    type(None): st.none,
    bool: st.booleans,
    int: lambda: st.integers(-(1 << 31), 1 << 53),
    float: lambda: st.floats(allow_nan=False, allow_infinity=False),
    str: texts,
    bytes: lambda: st.binary(max_size=30),
    Address: addresses,
    Recipient: recipients,
    Session: sessions,
    Transaction: transactions,
    Envelope: envelopes,
    MailParameters: mail_parameters,
    Content: _contents,
    HeaderField: lambda: st.builds(
        lambda name, value: HeaderField(name, f"{name}: {value}\r\n".encode()),
        _header_names(),
        st.text("abc \xfc", max_size=10),
    ),
    AddHeader: lambda: st.builds(
        AddHeader, _header_names(), _header_values(), _INDEXES, st.sampled_from(["", " ", "\t"])
    ),
    ChangeHeader: lambda: st.builds(ChangeHeader, _header_names(), st.integers(1, 3), _header_values()),
    DeleteHeader: lambda: st.builds(DeleteHeader, _header_names(), st.integers(0, 3)),
    ReplaceBody: lambda: st.builds(ReplaceBody, _contents()),
    Reroute: lambda: st.sampled_from(["lmtp:127.0.0.1:24", "smtp:store.example.org:25"]).map(Reroute),
    Prioritize: lambda: st.sampled_from(Priority).map(Prioritize),
}
