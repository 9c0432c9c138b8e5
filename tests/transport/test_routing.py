"""Next hops as the configuration writes them, and the table of domains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.address import NULL_SENDER, Address, AddressError, parse_mailbox
from gateway.transport.options import PipeOptions, WebhookOptions
from gateway.transport.routing import Router, Way, join_next_hops, parse_next_hop
from gateway.transport.transport import Destination, Kind, Security, Server


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smtp:store.example.net:2525", Destination(Kind.SMTP, "store.example.net", 2525)),
        ("smtp:Store.Example.NET.", Destination(Kind.SMTP, "store.example.net", 25)),
        ("smtp:192.0.2.1:25", Destination(Kind.SMTP, "192.0.2.1", 25)),
        ("smtp:B\u00fccher.example", Destination(Kind.SMTP, "xn--bcher-kva.example", 25)),
        ("smtp:[2001:DB8::1]:26", Destination(Kind.SMTP, "2001:db8::1", 26)),
        ("smtp:[2001:db8::1]", Destination(Kind.SMTP, "2001:db8::1", 25)),
        ("smtp:[192.0.2.1]:26", Destination(Kind.SMTP, "192.0.2.1", 26)),
        ("lmtp:dovecot.mail.svc", Destination(Kind.LMTP, "dovecot.mail.svc", 24)),
        ("lmtp:unix:/run/lmtp", Destination(Kind.LMTP, path="/run/lmtp")),
        ("maildir:./var/mail", Destination(Kind.MAILDIR, path="./var/mail")),
        ("maildir:/m/{domain}/{local}", Destination(Kind.MAILDIR, path="/m/{domain}/{local}")),
        ("mbox:/m/{local}", Destination(Kind.MBOX, path="/m/{local}")),
        ("transport:procmail", Destination(Kind.NAMED, name="procmail")),
        ("http://[::1]:8025/x", Destination(Kind.HTTP, options=WebhookOptions("http://[::1]:8025/x"))),
        ("https://hook.test/x?a=b", Destination(Kind.HTTP, options=WebhookOptions("https://hook.test/x?a=b"))),
        ("discard", Destination(Kind.DISCARD)),
        ("mx", Destination(Kind.SMTP, port=25, mx=True)),
    ],
)
def test_next_hops_are_read(text: str, expected: Destination):
    assert parse_next_hop(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("smtp:a.test:26", "smtp:[2001:db8::1]:25", "lmtp:unix:/x", "maildir:/m", "mbox:/m/{local}"),
        *("transport:procmail", "https://hook.test:8443/x", "discard"),
    ],
)
def test_a_destination_is_written_as_it_is_read(text: str):
    assert str(parse_next_hop(text)) == text


def test_what_may_be_a_secret_in_a_url_is_not_shown():
    assert str(parse_next_hop("https://hook.test/x?key=hush")) == "https://hook.test/x"
    for wrong in ("https://ann:hush@hook.test/", "https://a b/?hush", "https://hook.test/?hush#x"):
        with pytest.raises(ValueError) as caught:
            parse_next_hop(wrong)
        assert "hush" not in str(caught.value)


def test_security_is_kept():
    hop = parse_next_hop("smtp:a.test", security=Security.VERIFY, tls_ca="ca.pem")
    assert hop.security is Security.VERIFY and hop.tls_ca == "ca.pem"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no next hop"),
        ("store.example.net:25", "is no next hop; write smtp:host:port"),
        ("smtp:", "is no next hop"),
        ("smtps:a.test:465", "is no next hop"),
        ("mx:example.org", "is no next hop"),
        ("discard:x", "is no next hop"),
        ("smtp:a.test:0", "is no port"),
        ("smtp:a.test:65536", "is no port"),
        ("smtp:a.test:", "is no port"),
        ("smtp:a.test:\u0662\u0665", "is no port"),
        ("smtp:2001:db8::1:25", "in brackets"),
        ("smtp:[2001:db8::1", "write \\[address\\]:port"),
        ("smtp:[2001:db8::1]25", "write \\[address\\]:port"),
        ("smtp:[store.test]:25", "is no IP address"),
        ("smtp:a b:25", "neither a host name"),
        ("smtp:a..b:25", "neither a host name"),
        ("smtp:\u00fc..b:25", "no A-label form"),
        ("smtp:-a.test:25", "neither a host name"),
        ("smtp:" + "a." * 200 + "test", "at most 255 characters"),
        ("lmtp:unix:", "needs a path"),
        ("lmtp:unix:/" + "x" * 107, "107 octets"),
        ("maildir:", "needs a path"),
        ("mbox:", "needs a path"),
        ("mbox:/m/{user}", "no placeholder"),
        ("pipe:/usr/bin/procmail", "an entry of its own under `transports`"),
        ("transport:", "no name under `transports`"),
        ("transport:Proc Mail", "no name under `transports`"),
        ("https:", "neither a host name"),
        ("https://", "neither a host name"),
        ("https://a_b-/", "neither a host name"),
        ("https://hook.test:x/", "no URL"),
        ("https://hook.test:0/", "no port"),
        ("https://b\u00fccher.test/", "printable ASCII"),
        ("https://ann@hook.test/", "would stand in logs"),
        ("https://hook.test/#x", "has no #"),
        ("https://hook.test/" + "x" * 2000, "at most 2000"),
        ("maildir:/m/{user}", "no placeholder"),
        ("maildir:/m/{local", "no placeholder"),
    ],
)
def test_wrong_next_hops_are_refused_with_a_reason(text: str, says: str):
    with pytest.raises(ValueError, match=says):
        parse_next_hop(text)


A, B, C, D, E = (Destination(Kind.SMTP, f"{c}.test", 25) for c in "abcde")


def resolve(router: Router, address: str) -> Destination:
    return router.resolve(parse_mailbox(address, utf8=True))


def test_the_nearest_entry_wins():
    router = Router({"example.org": A, ".example.org": B, ".deep.example.org": C, "*": D})
    assert resolve(router, "x@Example.ORG") == A
    assert resolve(router, "x@www.example.org") == B
    assert resolve(router, "x@a.b.example.org") == B
    assert resolve(router, "x@a.deep.example.org") == C
    assert resolve(router, "x@deep.example.org") == B
    assert resolve(router, "x@example.net") == D
    assert resolve(router, "x@notexample.org") == D


def test_u_labels_find_the_a_label_entry():
    assert resolve(Router({"xn--bcher-kva.example": A}), "x@b\u00fccher.example") == A


def test_without_an_entry_the_default_or_mx_is_taken():
    assert resolve(Router({}, B), "x@example.net") == B
    assert resolve(Router({}), "x@Example.net") == Destination(Kind.SMTP, "example.net", 25, mx=True)


def test_an_mx_entry_keeps_its_security_for_each_domain():
    router = Router({}, parse_next_hop("mx", security=Security.REQUIRE))
    found = resolve(router, "x@example.net")
    assert found.host == "example.net" and found.mx and found.security is Security.REQUIRE


@pytest.mark.parametrize(("literal", "host"), [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1")])
def test_an_address_literal_is_reached_without_mx(literal: str, host: str):
    router = Router({".1]": A}, literals=True)
    assert resolve(router, f"x@{literal}") == Destination(Kind.SMTP, host, 25, literal=True)


def test_there_is_no_way_to_an_address_literal_unless_it_is_opened():
    with pytest.raises(AddressError, match="is off"):
        resolve(Router({"example.org": A}, B), "x@[192.0.2.1]")


def test_mail_for_a_literal_goes_where_all_mail_goes():
    assert resolve(Router({}, B, literals=True), "x@[192.0.2.1]") == B


SENDERS = {"ann@example.org": A, "example.org": B, ".example.org": C, "<>": D, "xn--bcher-kva.example": A}


@pytest.mark.parametrize(
    ("sender", "expected", "key"),
    [
        ("Ann@EXAMPLE.org", A, "routes.senders.ann@example.org"),
        ("ben@example.org", B, "routes.senders.example.org"),
        ("ann@a.b.example.org", C, "routes.senders..example.org"),
        ("", D, "routes.senders.<>"),
        ("x@b\u00fccher.example", A, "routes.senders.xn--bcher-kva.example"),
        ("x@elsewhere.test", E, "routes.default"),
    ],
)
def test_a_route_by_sender_is_the_nearest_one(sender: str, expected: Destination, key: str):
    router = Router({}, E, senders=SENDERS)
    whose = parse_mailbox(sender, utf8=True) if sender else NULL_SENDER
    assert router.find(parse_mailbox("x@example.net"), sender=whose) == Way(expected, key)


def test_the_null_sender_is_no_sender_of_a_domain():
    without = {key: hop for key, hop in SENDERS.items() if key != "<>"}
    assert Router({}, E, senders=without).resolve(parse_mailbox("x@example.net"), sender=NULL_SENDER) == E
    assert Router({}, E, senders=SENDERS).resolve(parse_mailbox("x@example.net")) == E


def test_the_recipients_domain_goes_before_the_sender():
    router = Router({"example.org": A}, E, routes={"example.net": B, ".example.net": C}, senders={"example.com": D})
    sender = parse_mailbox("ann@example.com")

    def key(recipient: str) -> str:
        return router.find(parse_mailbox(recipient), sender=sender).key

    assert key("x@example.org") == "domains.example.org"
    assert key("x@example.net") == "routes.domains.example.net"
    assert key("x@www.example.net") == "routes.domains..example.net"
    assert key("x@elsewhere.test") == "routes.senders.example.com"
    assert router.find(parse_mailbox("x@example.org"), "smtp:filter.test", sender).key == ""


def test_a_route_by_sender_may_follow_mx():
    router = Router({}, E, senders={"<>": parse_next_hop("mx", security=Security.REQUIRE)})
    found = router.resolve(parse_mailbox("x@example.net"), sender=NULL_SENDER)
    assert found == Destination(Kind.SMTP, "example.net", 25, mx=True, security=Security.REQUIRE)


@given(st.text(max_size=40), st.text(max_size=40), st.booleans())
def test_any_address_has_a_way_or_is_refused(local: str, domain: str, literals: bool):
    router = Router({"example.org": A}, E, routes={".net": B}, senders=SENDERS, literals=literals)
    address = Address(local, domain)
    try:
        assert router.resolve(address, sender=address) in (A, B, C, E)
    except AddressError as error:
        assert str(error)


def test_several_next_hops_are_one_destination():
    several = [(parse_next_hop("smtp:a.test"), 1, 3), (parse_next_hop("smtp:[2001:db8::1]:26"), 2, 1)]
    found = join_next_hops(several)
    assert found.servers == (Server("a.test", 25, "", 1, 3), Server("2001:db8::1", 26, "", 2, 1))
    assert str(found) == "smtp:a.test:25,smtp:[2001:db8::1]:26"
    assert join_next_hops(several[:1]) == parse_next_hop("smtp:a.test")


@pytest.mark.parametrize(
    ("hops", "says"),
    [
        ("smtp:a.test lmtp:b.test", "all are lmtp"),
        ("smtp:a.test mx", "mx cannot stand beside"),
        ("maildir:/m smtp:a.test", "maildir:/m cannot stand beside"),
        ("transport:x", "transport:x cannot stand beside"),
        ("smtp:a.test smtp:A.test:25", "stands in the list twice"),
    ],
)
def test_next_hops_that_cannot_stand_for_one_another_are_refused(hops: str, says: str):
    with pytest.raises(ValueError, match=says):
        join_next_hops([(parse_next_hop(hop), 1, 1) for hop in hops.split()])


def test_the_bare_postmaster_goes_to_his_entry_or_to_the_first():
    assert Router({"example.org": A, "": B}).resolve(Address("postmaster", "")) == B
    assert Router({"example.org": A, "*": B}).resolve(Address("postmaster", "")) == A


def test_a_message_that_brings_its_next_hop_goes_there():
    router = Router({"example.org": A}, B)
    assert router.resolve(Address("x", "example.org"), "smtp:filter.test:10025") == Destination(
        Kind.SMTP, "filter.test", 10025
    )
    assert router.resolve(Address("x", "example.net"), "mx") == Destination(Kind.SMTP, "example.net", 25, mx=True)
    with pytest.raises(ValueError, match="no next hop"):
        router.resolve(Address("x", "example.org"), "carrier-pigeon")


PROCMAIL = Destination(Kind.PIPE, name="procmail", options=PipeOptions(("/usr/bin/procmail",)))


def test_a_name_stands_for_an_entry_of_the_transports():
    router = Router({"example.org": parse_next_hop("transport:procmail")}, named={"procmail": PROCMAIL})
    assert resolve(router, "x@example.org") == PROCMAIL
    assert router.resolve(Address("x", "example.net"), "transport:procmail") == PROCMAIL
    assert str(PROCMAIL) == "transport:procmail"


def test_a_name_that_stands_nowhere_is_no_next_hop():
    with pytest.raises(ValueError, match="no transport 'other'"):
        Router({}).resolve(Address("x", "example.net"), "transport:other")


def test_a_message_cannot_bring_along_an_mbox():
    with pytest.raises(ValueError, match="named by the configuration"):
        Router({}).resolve(Address("x", "example.net"), "mbox:/etc/crontab")
