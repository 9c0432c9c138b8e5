"""SRS: addresses go out and come back, and nobody else can make one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.mail.address import Address, AddressError, parse_mailbox
from gateway.mail.srs import Srs, SrsError

DAY = 86400.0
NOW = 20_000 * DAY
SECRET = b"a secret of some length"
SRS = Srs("srs.example.org", (SECRET,))
# By `srs --secret "a secret of some length" --alias srs.example.org` (Mail::SRS 0.31) on day 20783.
KNOWN_DAY = 20_783
KNOWN = {
    "Ben.K@Example.NET": "SRS0=F0mk=JP=Example.NET=Ben.K@srs.example.org",
    "SRS0=abcd=JP=example.net=ben@a.test": "SRS1=rWg/=a.test==abcd=JP=example.net=ben@srs.example.org",
    "SRS1=xyzw=a.test==abcd=JP=example.net=ben@b.test": "SRS1=rWg/=a.test==abcd=JP=example.net=ben@srs.example.org",
}


def restored(srs: Srs, text: str, now: float = NOW) -> str:
    return str(srs.restore(parse_mailbox(text), now))


@pytest.mark.parametrize("sender", KNOWN)
def test_addresses_are_those_that_others_make(sender: str) -> None:
    ours = Srs(SRS.domain, SRS.secrets, hash_length=4)
    made = ours.rewrite(parse_mailbox(sender), KNOWN_DAY * DAY)
    # The domain is in lower case with us; no hash depends on it.
    assert str(made).lower() == KNOWN[sender].lower()
    assert ours.restore(parse_mailbox(KNOWN[sender]), KNOWN_DAY * DAY)


def test_a_first_rewriting_comes_back_as_the_sender() -> None:
    made = SRS.rewrite(parse_mailbox("Ben+news@example.net"), NOW)
    assert made.domain == "srs.example.org" and made.local.endswith("=example.net=Ben+news")
    assert restored(SRS, str(made)) == "Ben+news@example.net"


def test_a_bounce_of_a_second_rewriting_goes_to_the_first_forwarder() -> None:
    first = Srs("a.test", (b"another secret of theirs",)).rewrite(parse_mailbox("ben@example.net"), NOW)
    second = SRS.rewrite(first, NOW)
    assert second.local.startswith("SRS1=") and restored(SRS, str(second)) == str(first)
    third = Srs("c.test", (b"a third one's own secret",)).rewrite(second, NOW)
    assert restored(Srs("c.test", (b"a third one's own secret",)), str(third)) == str(first)


@pytest.mark.parametrize("separator", "-+=")
def test_all_three_separators_of_others_are_kept_and_read(separator: str) -> None:
    theirs = f"SRS0{separator}abcd=JP=example.net=ben@a.test"
    made = SRS.rewrite(parse_mailbox(theirs), NOW)
    assert restored(SRS, str(made)) == theirs
    ours = str(SRS.rewrite(parse_mailbox("ben@example.net"), NOW))
    assert restored(SRS, ours.replace("SRS0=", f"SRS0{separator}")) == "ben@example.net"


@pytest.mark.parametrize("fold", [str.lower, str.upper])
def test_hosts_that_fold_the_case_on_the_way_break_nothing(fold: type) -> None:
    made = str(SRS.rewrite(parse_mailbox("Ben@example.net"), NOW))
    assert restored(SRS, fold(made)).lower() == "ben@example.net"


def test_a_local_part_that_needs_quotes_comes_back_with_them() -> None:
    made = SRS.rewrite(parse_mailbox('"ben k"@example.net'), NOW)
    assert str(made).startswith('"SRS0=') and restored(SRS, str(made)) == '"ben k"@example.net'
    equals = SRS.rewrite(parse_mailbox("a=b=c@example.net"), NOW)
    assert restored(SRS, str(equals)) == "a=b=c@example.net"


def test_a_domain_of_others_that_is_international_stands_in_a_labels() -> None:
    made = SRS.rewrite(parse_mailbox("ben@bücher.example", utf8=True), NOW)
    assert restored(SRS, str(made)) == "ben@xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("local", "says"),
    [
        ("SRS0=AAAAAAAA={day}=example.net=ben", "hash is wrong"),
        ("SRS0={hash}={day}=example.net=eve", "hash is wrong"),
        ("SRS0={hash}={day}=example.com=ben", "hash is wrong"),
        ("SRS0={hash}=AA=example.net=ben", "hash is wrong"),
        ("SRS0={short}={day}=example.net=ben", "wrong length"),
        ("SRS0=={day}=example.net=ben", "wrong length"),
        ("SRS0={hash}={day}=example.net", "lacks a part"),
        ("SRS0={hash}", "lacks a part"),
        ("SRS1={hash}=example.net={hash}={day}", "lacks a part"),
        ("SRS1={hash}=example.net==x", "hash is wrong"),
        ("ben", "no rewritten address"),
        ("SRS0", "no rewritten address"),
        ("SRS0x", "no rewritten address"),
        ("SRS2=a=b=c=d", "no rewritten address"),
    ],
)
def test_what_we_did_not_write_is_refused(local: str, says: str) -> None:
    _, hash, day, _ = SRS.rewrite(parse_mailbox("ben@example.net"), NOW).local.split("=", 3)
    with pytest.raises(SrsError, match=says):
        SRS.restore(Address(local.format(hash=hash, day=day, short=hash[:4]), SRS.domain), NOW)


def test_another_domain_is_not_ours_to_read() -> None:
    made = SRS.rewrite(parse_mailbox("ben@example.net"), NOW)
    assert SRS.reads(made) and SRS.reads(Address(made.local, "SRS.Example.ORG"))
    elsewhere = Address(made.local, "example.com")
    assert not SRS.reads(elsewhere)
    with pytest.raises(SrsError):
        SRS.restore(elsewhere, NOW)


@pytest.mark.parametrize(
    ("days", "good"), [(-2, False), (-1, True), (0, True), (21, True), (22, False), (500, False), (1023, True)]
)
def test_an_address_is_good_for_its_days_and_for_clocks_that_are_a_little_ahead(days: int, good: bool) -> None:
    # 1023 days later, the two characters cannot be told from those of tomorrow.
    made = SRS.rewrite(parse_mailbox("ben@example.net"), NOW)
    if good:
        assert SRS.restore(made, NOW + days * DAY)
    else:
        with pytest.raises(SrsError, match="time is over"):
            SRS.restore(made, NOW + days * DAY)


def test_days_wrap_around_after_1024() -> None:
    last = 1023 * DAY
    assert "=77=" in SRS.rewrite(parse_mailbox("ben@example.net"), last).local
    assert SRS.restore(SRS.rewrite(parse_mailbox("ben@example.net"), last), last + 3 * DAY)


def test_an_old_secret_still_reads_and_the_first_one_signs() -> None:
    old = SRS.rewrite(parse_mailbox("ben@example.net"), NOW)
    rotated = Srs(SRS.domain, (b"the new secret of ours", SECRET))
    assert rotated.restore(old, NOW) == parse_mailbox("ben@example.net")
    with pytest.raises(SrsError):
        SRS.restore(rotated.rewrite(parse_mailbox("ben@example.net"), NOW), NOW)
    with pytest.raises(SrsError):
        Srs(SRS.domain, (b"the new secret of ours",)).restore(old, NOW)


def test_a_longer_hash_than_we_ask_for_is_read_and_never_shown_in_the_repr() -> None:
    longer = Srs(SRS.domain, SRS.secrets, hash_length=27).rewrite(parse_mailbox("ben@example.net"), NOW)
    assert SRS.restore(longer, NOW) == parse_mailbox("ben@example.net")
    assert b"secret" not in repr(SRS).encode()


def test_a_local_part_over_64_octets_is_made_only_when_asked_for() -> None:
    sender = Address("b" * 60, "example.net")
    with pytest.raises(SrsError, match="too long"):
        SRS.rewrite(sender, NOW)
    long = Srs(SRS.domain, SRS.secrets, over_long=True)
    made = long.rewrite(sender, NOW)
    assert len(made.local) > 64 and restored(long, str(made)) == str(sender)
    with pytest.raises(SrsError, match="too long"):
        long.rewrite(Address("b" * 64, "x" * 60 + "." + "y" * 60 + "." + "z" * 60), NOW)


def test_an_address_over_64_octets_is_parsed_only_when_it_has_the_form_of_srs() -> None:
    assert parse_mailbox("SRS0=abcd=JP=example.net=" + "b" * 60 + "@a.test")
    with pytest.raises(AddressError, match="too long"):
        parse_mailbox("b" * 65 + "@a.test")


@pytest.mark.parametrize("options", [{"secrets": ()}, {"secrets": (b"",)}, {"hash_length": 3}, {"valid_days": 600}])
def test_options_that_would_be_no_protection_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"secret|hash"):
        Srs(**{"domain": "a.test", "secrets": (SECRET,), **options})  # type: ignore[arg-type]


LOCALS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"\\@'), min_size=1, max_size=40)


@given(LOCALS)
@example("SRS0=")
@example("SRS1==")
@example("srs1=a==b")
def test_every_sender_comes_back_or_stays(local: str) -> None:
    srs = Srs("srs.example.org", (SECRET,), over_long=True)
    sender = Address(local, "example.net")
    made = srs.rewrite(sender, NOW)
    back = srs.restore(made, NOW)
    if made.local.startswith("SRS0"):
        assert back == sender
    else:
        assert back.local.startswith("SRS0")


@given(st.text(max_size=80))
def test_nothing_made_up_is_ever_read(local: str) -> None:
    for tag in ("SRS0=", "SRS1=", "srs0+", ""):
        with pytest.raises(SrsError):
            SRS.restore(Address(tag + local, SRS.domain), NOW)
