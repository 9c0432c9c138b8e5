"""The address grammar against arbitrary text: an address or an AddressError, and nothing else ever."""

from __future__ import annotations

import contextlib

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.kit.strategies import addresses, domains
from gateway.mail.address import (
    NULL_SENDER,
    Address,
    AddressError,
    ascii_domain,
    parse_domain,
    parse_forward_path,
    parse_mailbox,
    parse_reverse_path,
    split_path,
)

# Half of the text is made of what the grammar cares about; surrogates stand for octets that are no UTF-8.
CHARACTERS = st.one_of(st.sampled_from('abA09.@"\\<>[]:%-_ ,\t\r\n\x00üß。\uff11\u00ad\u2028\udc80'), st.characters())
TEXT = st.text(CHARACTERS, max_size=300)
DOMAIN = st.one_of(domains(), TEXT)
LOCAL = st.one_of(st.text(CHARACTERS, max_size=70), st.text(CHARACTERS, max_size=60).map(lambda text: f'"{text}"'))
MAILBOX = st.one_of(TEXT, st.tuples(LOCAL, DOMAIN).map("@".join), addresses().map(str))


@settings(max_examples=600, deadline=None)
@given(MAILBOX, st.booleans())
@example("anna@[IPv6:::1%\r\n]", False)
@example("a\udc80@b", True)
def test_an_address_reads_back_as_it_was_written(text: str, utf8: bool) -> None:
    try:
        address = parse_mailbox(text, utf8=utf8)
    except AddressError:
        return
    assert parse_mailbox(str(address), utf8=utf8) == address
    assert utf8 or str(address).isascii()
    assert len(str(address)) <= len(text)
    assert address.key == address.key.lower()
    assert ascii_domain(address.ascii_domain) == address.ascii_domain
    # Whatever was quoted, nothing can end the line or the path early.
    assert all(c.isprintable() or c > "\x9f" for c in str(address))
    assert split_path(f"<{address}>") == (str(address), "")


@settings(max_examples=400, deadline=None)
@given(st.one_of(TEXT, MAILBOX.map(lambda text: f"<{text}> SIZE=1")), st.booleans())
def test_a_path_is_an_address_or_an_address_error(text: str, utf8: bool) -> None:
    try:
        inner, rest = split_path(text)
    except AddressError:
        return
    assert text.startswith(f"<{inner}>")
    assert rest in text
    with contextlib.suppress(AddressError):
        sender = parse_reverse_path(inner, utf8=utf8)
        assert sender is NULL_SENDER or isinstance(sender, Address)
    with contextlib.suppress(AddressError):
        assert isinstance(parse_forward_path(inner, utf8=utf8), Address)


@settings(max_examples=400, deadline=None)
@given(DOMAIN, st.booleans())
def test_a_domain_has_a_form_to_compare_or_is_an_address_error(text: str, utf8: bool) -> None:
    try:
        domain = parse_domain(text, utf8=utf8)
    except AddressError:
        return
    assert domain == text
    assert ascii_domain(domain).isascii()
    assert len(ascii_domain(domain)) <= 255
