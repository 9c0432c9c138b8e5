"""Recipients in a file with 200,000 lines that changes while Gatepost runs."""

from __future__ import annotations

import pytest

from tests.interop.recipients import DOMAIN, taken
from tests.support.gatepost import GatepostProcess
from tests.support.process import wait_until

pytestmark = pytest.mark.slow


def looked(gate: GatepostProcess, times: int) -> bool:
    """Ask for somebody, so that the list is looked at; whether it was found to be unusable that often."""
    taken(gate, f"user1@{DOMAIN}")
    return gate.log.count('"file.unusable"') == times


def test_a_list_in_a_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing(gatepost, directory):
    people = directory / "people"

    def put(text: str) -> None:
        new = directory / "people.new"
        new.write_text(text)
        new.rename(people)

    put("".join(f"user{n}\n" for n in range(200_000)) + "anna\n")
    gate = gatepost(
        domains={
            DOMAIN: {
                "next_hop": f"maildir:{directory}/mail",
                "recipients": {"list_file": str(people), "subaddress": "+"},
            }
        }
    )
    assert taken(gate, f"anna+news@{DOMAIN}") and taken(gate, f"user199999@{DOMAIN}")
    assert not taken(gate, f"ben@{DOMAIN}")

    put("".join(f"user{n}\n" for n in range(200_000)) + "ben\n")
    wait_until(lambda: taken(gate, f"ben@{DOMAIN}"), "the new list is read", 30)
    assert not taken(gate, f"anna@{DOMAIN}")

    for number, broken in enumerate(("carl\n\ndora@elsewhere.test\n", ""), 1):
        put(broken)
        wait_until(lambda n=number: looked(gate, n), "the broken file was looked at", 30)
        assert taken(gate, f"ben@{DOMAIN}")
        assert not taken(gate, f"carl@{DOMAIN}")
    assert "line 3: 'dora@elsewhere.test' is no local part" in gate.log
    put("carl\n")
    wait_until(lambda: taken(gate, f"carl@{DOMAIN}"), "the mended file is read", 30)
