"""Domains as options name them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from gateway.sdk import NULL_SENDER, Address, DomainNames, domain_of, find_domain, show_domain
from gateway.sdk.domains import read_domain

NAMES = TypeAdapter(DomainNames)


def test_domains_of_options_are_kept_as_a_labels_and_shown_in_order():
    names = NAMES.validate_python(["Example.ORG.", "b\u00fccher.example"])
    assert names == {"example.org", "xn--bcher-kva.example"}
    assert NAMES.dump_python(names, mode="json") == ["example.org", "xn--bcher-kva.example"]


@pytest.mark.parametrize("text", ["", ".", "a..b", "a b@c", "[192.0.2.1]", "-", "x" * 64 + ".test", "a/b", "*.test"])
def test_what_is_no_domain_is_refused(text):
    with pytest.raises(ValidationError):
        NAMES.validate_python([text])
    assert read_domain(text) == ""


def test_a_domain_belongs_to_the_longest_name_that_it_is_or_is_below():
    names = {"example.org", "shop.example.org"}
    assert find_domain("example.org", names) == "example.org"
    assert find_domain("a.shop.example.org", names) == "shop.example.org"
    assert find_domain("notexample.org", names) == find_domain("org", names) == find_domain("", names) == ""


def test_who_has_no_domain_has_an_empty_one():
    assert domain_of(Address("anna", "Example.ORG")) == "example.org"
    assert domain_of(NULL_SENDER) == domain_of(Address("postmaster", "")) == ""


def test_a_labels_are_shown_as_they_are_read_and_broken_ones_as_they_stand():
    assert show_domain("xn--bcher-kva.example") == "b\u00fccher.example"
    assert show_domain("XN--0.xn--.example") == "xn--0.xn--.example"


@settings(max_examples=60)
@given(st.text(max_size=300))
def test_any_text_is_read_as_a_domain_or_none(text):
    name = read_domain(text)
    assert name == name.lower() and name.isascii() and len(name) <= 255
    assert read_domain(name) == name
    show_domain(name)
