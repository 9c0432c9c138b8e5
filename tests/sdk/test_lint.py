"""What authors tell `gatepost lint`, and what it may rely on."""

from __future__ import annotations

import pytest

from gateway.sdk import AddHeader, ChangeHeader, DeleteHeader, Edit, ReplaceBody, Reroute
from gateway.sdk.lint import Setting, break_signatures, refuses_public_resolvers
from gateway.sdk.plugin import Plugin, PluginOptions
from gateway.sdk.policy import Policy, PolicyOptions
from gateway.sdk.testing import Bench


@pytest.mark.parametrize(
    ("edit", "breaks"),
    [
        (ReplaceBody(b"x"), True),
        (ChangeHeader("SUBJECT", 1, "x"), True),
        (DeleteHeader("To"), True),
        (AddHeader("X-Spam", "Yes"), False),
        (Reroute("smtp:store.example.org:25"), False),
    ],
)
def test_edits_of_the_body_and_of_signed_fields_break_signatures(edit: Edit, breaks: bool) -> None:
    assert break_signatures([AddHeader("X-Seen", "yes"), edit]) is breaks


@pytest.mark.parametrize(
    ("zone", "refuses"),
    [
        ("zen.spamhaus.org", True),
        ("Multi.URIBL.com.", True),
        ("key.zen.dq.spamhaus.net", False),
        ("notspamhaus.org", False),
        ("bl.spamcop.net", False),
    ],
)
def test_lists_that_refuse_public_resolvers_are_known_by_their_zone(zone: str, refuses: bool) -> None:
    assert refuses_public_resolvers(zone) is refuses


def test_who_says_nothing_is_not_remarked_on() -> None:
    class Quiet(Plugin):
        name = "quiet"

    plugin, policy = Quiet(PluginOptions(), Bench().services), Policy(PolicyOptions())
    assert (plugin.patience(), plugin.looks_up_to(), plugin.signs, policy.changes()) == (0.0, None, False, False)
    assert not list(plugin.lint(Setting())) and not list(policy.lint(Setting())) and not list(policy.ways())
