"""Lines of access lists that never match: what is called hidden is hidden, whatever is looked up."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk import Stage, parse_mailbox
from gateway.sdk.lint import Setting, Trust
from plugins.access import AccessOptions, AccessPolicy, ListOptions
from plugins.access.lines import numbered
from plugins.access.shadowed import hidden_keys, hidden_networks
from plugins.access.tables import address_subject, client_subject, parse_address, parse_client

octets = st.integers(0, 3)
networks = st.builds(
    lambda a, b, c, n: str(ipaddress.ip_network((f"{a}.{b}.{c}.0", n), strict=False)),
    octets,
    octets,
    octets,
    st.integers(0, 26),
)
labels = st.sampled_from(["a", "b"])
domains = st.builds(lambda dot, *parts: dot + ".".join(parts), st.sampled_from(["", "."]), labels, labels, labels)
keys = st.one_of(domains, st.builds("{}@{}".format, labels, st.sampled_from(["a.b.a", "b.b.a", ""])), st.just("<>"))


@given(st.lists(networks, max_size=12), st.lists(st.builds("{}.{}.{}.{}".format, octets, octets, octets, octets)))
def test_a_network_that_is_hidden_is_never_the_first_to_match(patterns: list[str], clients: list[str]) -> None:
    options = ListOptions(match="client", entries=tuple(f"{p} reject" for p in patterns) or ("192.0.2.1 ok",))
    table = options.from_entries()
    rules = list(options.rules(numbered(options.entries)))
    hidden = {rule.line for rule, _ in hidden_networks(rules, parse_client)}
    for client in [*clients, *(str(ipaddress.ip_network(p)[0]) for p in patterns)]:
        found = table.find(client_subject(ipaddress.ip_address(client)))
        assert found is None or found.line not in hidden
    # Those that stand there twice are found, at the least.
    assert {i for i, p in enumerate(patterns, 1) if p in patterns[: i - 1]} <= hidden


@given(st.lists(keys, max_size=12))
def test_an_address_pattern_that_is_hidden_is_never_the_first_to_match(patterns: list[str]) -> None:
    options = ListOptions(match="sender", entries=tuple(f"{p} reject" for p in patterns) or ("x.y ok",))
    table = options.from_entries()
    rules = list(options.rules(numbered(options.entries)))
    hidden = {rule.line for rule, _ in hidden_keys(rules, parse_address)}
    for local in ("a", "b", "c"):
        for domain in ("a.b.a", "b.b.a", "a.a.b.a", "b.a", "c.c"):
            found = table.find(address_subject(parse_mailbox(f"{local}@{domain}"), ""))
            assert found is None or found.line not in hidden
    assert {i for i, p in enumerate(patterns, 1) if p in patterns[: i - 1]} <= hidden


def policy(*lists: dict[str, object], at: str = "rcpt") -> AccessPolicy:
    return AccessPolicy(AccessOptions.model_validate({"lists": lists, "at": at}))


@pytest.mark.parametrize(
    ("match", "pattern", "trust"),
    [
        ("client", "192.0.2.1", Trust.EVIDENCE),
        ("name", ".example.org", Trust.EVIDENCE),
        ("helo", "mx.example.org", Trust.CLAIM),
        ("sender", "anna@", Trust.CLAIM),
        ("recipient", "abuse@", Trust.RECIPIENT),
    ],
)
def test_what_accepts_says_on_what_ground(match: str, pattern: str, trust: Trust) -> None:
    (way,) = policy({"match": match, "entries": [f"{pattern} accept"]}).ways()
    assert (way.stage, way.trust, way.always) == (Stage.RCPT, trust, False)


def test_a_list_for_everybody_decides_always_unless_an_exception_stands_before_it() -> None:
    whole = ["0.0.0.0/0 reject", "::/0 reject"]
    assert [way.always for way in policy({"match": "client", "kind": "cidr", "entries": whole}).ways()] == [True]
    for entries in (["0.0.0.0/0 reject"], ["192.0.2.1 ok", *whole], ["0.0.0.0/0 dunno", "::/0 dunno"]):
        assert not list(policy({"match": "client", "kind": "cidr", "entries": entries}).ways())


def test_what_is_hidden_names_both_lines_of_a_file(tmp_path) -> None:
    file = tmp_path / "senders"
    file.write_text("# people\n.example.com ok\nmail.example.com reject\n")
    (remark,) = policy({"match": "sender", "file": str(file)}).lint(Setting())
    assert remark.check.code == "access/hidden-line" and remark.path == ("lists", 0, "file")
    assert "line 3" in remark.message and "line 2" in remark.message
