"""Hosts in arbitrary texts: whatever stands there, what is found are names and addresses that can be asked for."""

from __future__ import annotations

import ipaddress
import re

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.sdk import MimeText
from plugins.content.hosts import host_of, is_address, registered
from plugins.content.uris import choose, find_hosts

SCRAPS = st.sampled_from(
    [
        "http://", "https:", "//", "\\\\", "hxxp://", "http%3A%2F%2F", "<a href=", "<img/src='", '"', "'", ">", "</a>",
        "@", ":", "%", "%2e", ".", "evil", ".com", ".co.uk", "192.0.2.7", "0x7f", "0177", "[::1]", "xn--", "ä",
        "\u3002", "\u200b", "\0", "&#46;", "&colon;", "&sol;", " ", "\n", "?u=", "#", "-", "_", "a" * 70,
    ]
)  # fmt: skip
TEXTS = st.lists(SCRAPS | st.text(max_size=5), max_size=40).map("".join)
NAME = re.compile(
    r"(?=.{3,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)+\Z"
)


def is_host(host: str) -> bool:
    if is_address(host):
        return str(ipaddress.ip_address(host)) == host
    return NAME.match(host) is not None and registered(host) != ""


@given(TEXTS, st.sampled_from(["text/plain", "text/html"]))
@example("http://" * 20_000, "text/html")
@example("<a href=" * 20_000, "text/html")
@example("<" * 100_000, "text/html")
@example("a." * 50_000, "text/plain")
@example("a-" * 50_000, "text/plain")
@example("&#" * 50_000, "text/html")
def test_all_that_is_found_can_be_asked_for(text, kind):
    found = find_hosts([MimeText("1", kind, text)])
    assert find_hosts([MimeText("1", kind, text)]) == found
    assert all(map(is_host, found.links + found.words))
    assert len(set(found.links + found.words)) == len(found.links + found.words)


@given(TEXTS)
def test_any_authority_has_a_host_or_none(text):
    host = host_of(text)
    assert not host or is_host(host)


@given(st.ip_addresses(v=4), st.sampled_from(["{0}", "0x{0:x}", "0{0:o}"]), st.integers(1, 4))
def test_an_ipv4_address_is_seen_through_every_way_to_write_it(address, form, parts):
    octets = list(address.packed)
    numbers = [*octets[: parts - 1], int.from_bytes(octets[parts - 1 :], "big")]
    assert host_of(".".join(form.format(number) for number in numbers) + ":80/") == str(address)


@given(st.lists(st.from_regex(r"[a-z]{1,4}\.[a-z]{1,3}\.test", fullmatch=True), max_size=60), st.integers(1, 10))
def test_a_choice_is_bounded_and_the_same_in_any_order(hosts, most):
    chosen = choose(hosts, most)
    assert len(chosen) <= most
    assert set(choose(sorted(hosts), most)) == set(chosen) <= set(hosts)
