"""What milters are told by macros."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from gateway.sdk import AuthResult, ReverseName, Tls
from gateway.sdk.testing import make_client_certificate, make_recipient, make_session, make_transaction
from plugins.milter.macros import Facts, MacroOptions, MacroStage, canonical, client_host, client_name, macro, macros

FORGED = ReverseName(AuthResult.FAIL, "192.0.2.1", "", ("mail.other.example",))
NAMED = ReverseName(AuthResult.PASS, "192.0.2.1", "mail.client.example", ("mail.client.example",))


def facts(reverse: ReverseName | None = None, **session) -> Facts:
    made = make_session(**session)
    return Facts("mx.example.org", made, client_name(made, reverse), make_transaction(made), make_recipient())


@pytest.mark.parametrize(
    ("name", "form"),
    [("j", "j"), ("{j}", "j"), ("{client_addr}", "{client_addr}"), ("client_addr", "{client_addr}"), ("_", "_")],
)
def test_a_macro_has_one_name_with_or_without_braces(name, form):
    assert canonical(name) == form


@pytest.mark.parametrize("name", ["", "{}", "{a b}", "{a", "a\0", "1", "{1a}", "{" + "a" * 80 + "}"])
def test_what_is_no_macros_name_is_refused(name):
    with pytest.raises(ValueError, match="macro's name"):
        canonical(name)


def test_at_connect_the_client_and_the_listener_are_told():
    told = macros(MacroOptions().names(MacroStage.CONNECT), facts(NAMED))
    assert told.pop("v").startswith("Gatepost ")
    assert told == {
        "j": "mx.example.org",
        "{daemon_name}": "mx.example.org",
        "{daemon_addr}": "127.0.0.1",
        "{daemon_port}": "25",
        "_": "mail.client.example [192.0.2.1]",
        "{client_addr}": "192.0.2.1",
        "{client_name}": "mail.client.example",
        "{client_port}": "40000",
        "{client_ptr}": "mail.client.example",
    }


def test_a_name_that_does_not_lead_back_may_be_forged():
    forged = facts(FORGED)
    assert macro("_", forged) == "mail.other.example [192.0.2.1] (may be forged)"
    assert [macro(f"{{client_{n}}}", forged) for n in ("name", "ptr", "resolve")] == [
        "unknown",
        "mail.other.example",
        "FORGED",
    ]


def test_a_client_that_nobody_looked_up_is_unknown():
    assert macro("_", facts()) == "unknown [192.0.2.1]"
    assert [macro(f"{{client_{n}}}", facts()) for n in ("name", "ptr", "resolve")] == ["unknown", "unknown", "FAIL"]


def test_the_name_that_a_trusted_proxy_gave_comes_before_what_was_looked_up():
    assert macro("{client_name}", facts(FORGED, name="mx.elsewhere.example")) == "mx.elsewhere.example"


def test_an_address_of_version_6_is_told_as_in_a_literal():
    six = facts(client="2001:db8::1")
    assert macro("{client_addr}", six) == "IPv6:2001:db8::1"
    assert macro("_", six) == "unknown [2001:db8::1]"


def test_of_tls_the_version_the_cipher_and_its_strength_are_told():
    names = MacroOptions().names(MacroStage.HELO)
    assert macros(names, facts()) == {}
    assert macros(names, facts(tls=Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384"))) == {
        "{tls_version}": "TLSv1.3",
        "{cipher}": "TLS_AES_256_GCM_SHA384",
        "{cipher_bits}": "256",
    }
    assert "{cipher_bits}" not in macros(names, facts(tls=Tls("TLSv1.9", "NEVER_HEARD_OF")))


def test_names_of_a_clients_certificate_are_told_when_a_ca_vouches_for_them():
    names = (*MacroOptions().names(MacroStage.HELO)[3:], "{verify}")
    tls = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    assert macros(names, facts()) == {"{verify}": "NONE"}
    assert macros(names, facts(tls=tls)) == {"{verify}": "NO"}
    shown = replace(tls, client=make_client_certificate("mx.partner.example", issuer="Partners CA"))
    assert macros(names, facts(tls=shown)) == {
        "{cert_subject}": "mx.partner.example",
        "{cert_issuer}": "Partners CA",
        "{verify}": "OK",
    }
    shown = replace(tls, client=make_client_certificate(problem="cert has expired"))
    assert macros(names, facts(tls=shown)) == {"{verify}": "FAIL"}


def test_sender_and_recipient_are_told_when_they_are_there():
    known = facts()
    assert macros(MacroOptions().names(MacroStage.MAIL), known) == {
        "i": known.transaction.id,
        "{mail_addr}": "ben@sender.example",
        "{mail_host}": "sender.example",
        "{mail_mailer}": "smtp",
    }
    assert macros(MacroOptions().names(MacroStage.RCPT), known) == {
        "i": known.transaction.id,
        "{rcpt_addr}": "anna@example.org",
        "{rcpt_host}": "example.org",
        "{rcpt_mailer}": "smtp",
    }
    early = Facts("mx.example.org", known.session)
    assert macros(MacroOptions().names(MacroStage.MAIL), early) == {}
    assert macros(MacroOptions().names(MacroStage.RCPT), early) == {}


def test_the_null_sender_is_the_empty_text():
    null = Facts("mx.example.org", make_session(), transaction=make_transaction(sender=""))
    assert (macro("{mail_addr}", null), macro("{mail_host}", null)) == ("", "")


def test_fixed_values_come_first_and_may_name_what_gatepost_does_not_know():
    options = MacroOptions.model_validate({"values": {"daemon_name": "ORIGINATING", "{auth_type}": "PLAIN"}})
    assert macro("{daemon_name}", facts(), options.values) == "ORIGINATING"
    assert macro("{auth_type}", facts(), options.values) == "PLAIN"
    assert macro("{auth_type}", facts()) is None


def test_lists_of_macros_are_checked_when_they_are_read():
    assert MacroOptions.model_validate({"rcpt": ["{i}", "rcpt_addr"]}).names(MacroStage.RCPT) == ("i", "{rcpt_addr}")
    with pytest.raises(ValidationError, match="macro's name"):
        MacroOptions.model_validate({"rcpt": ["i j"]})


def test_a_client_without_a_name_is_its_address_in_brackets_at_connect():
    assert client_host(facts(NAMED)) == "mail.client.example"
    assert client_host(facts(FORGED)) == "[192.0.2.1]"
    assert client_host(facts(client="2001:db8::1")) == "[IPv6:2001:db8::1]"
