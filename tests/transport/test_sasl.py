"""Mechanisms against the dialogues of their RFCs, and against servers that are none."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.transport.sasl import (
    Login,
    MechanismName,
    Misled,
    ScramSha256,
    choose,
    decode_challenge,
    prepare,
)

ALL = "PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256 DIGEST-MD5"
SERVER_FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def login(user: str = "user", password: str = "pencil", **more) -> Login:
    return Login(user, password, **more)


def begun(name: MechanismName, **more):
    chosen = choose(login(mechanisms=(name,), **more), ALL)
    assert chosen is not None and chosen[0] == name
    return chosen[1]


def test_the_best_mechanism_of_those_that_are_offered_and_wanted_is_chosen():
    assert choose(login(), ALL)[0] == "SCRAM-SHA-256"
    assert choose(login(), "login plain")[0] == "PLAIN"
    assert choose(login(mechanisms=(MechanismName.LOGIN, MechanismName.CRAM_MD5)), ALL)[0] == "CRAM-MD5"
    assert choose(login(), "GSSAPI") is None and choose(login(), "") is None


def test_plain_is_one_response():
    plain = begun(MechanismName.PLAIN)
    assert plain.begins and plain.respond(b"") == b"\0user\0pencil"
    plain.check()


def test_login_is_two():
    it = begun(MechanismName.LOGIN)
    assert [it.respond(b"Username:"), it.respond(b"Password:")] == [b"user", b"pencil"]
    it.check()


def test_cram_md5_is_as_in_rfc_2195():
    it = begun(MechanismName.CRAM_MD5, user="tim", password="tanstaaftanstaaf")
    answer = it.respond(b"<1896.697170952@postoffice.reston.mci.net>")
    assert answer == b"tim b913a602c7eda7a495b4e6e7334d3890"
    it.check()


def test_scram_sha_256_is_as_in_rfc_7677():
    it = ScramSha256(login(), "rOprNGfwEbeRWgbNEkqO")
    assert it.respond(b"") == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    assert it.respond(SERVER_FIRST) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert it.respond(SERVER_FINAL) == b""
    it.check()


def test_names_are_quoted_for_scram():
    assert ScramSha256(login("a=b,c"), "x").respond(b"") == b"n,,n=a=3Db=2Cc,r=x"


@pytest.mark.parametrize(
    ("challenges", "why"),
    [
        ([b"hello"], "speaks first"),
        ([b"", b"\xff"], "no text"),
        ([b"", b"nothing"], "malformed"),
        ([b"", SERVER_FIRST.replace(b"r=rO", b"r=xO")], "nonce"),
        ([b"", b"r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"], "nonce"),
        ([b"", SERVER_FIRST.replace(b"4096", b"4095")], "4095 iterations"),
        ([b"", SERVER_FIRST.replace(b"4096", b"999999999999")], "iterations"),
        ([b"", SERVER_FIRST.replace(b"s=W", b"s=!")], "base64"),
        ([b"", SERVER_FIRST, b"e=other-error"], "other-error"),
        ([b"", SERVER_FIRST, SERVER_FINAL.replace(b"6r", b"7r")], "does not know"),
        ([b"", SERVER_FIRST, b"v=\xc3\xa9"], "base64"),
        ([b"", SERVER_FIRST, SERVER_FINAL, b"more"], "goes on"),
    ],
)
def test_a_scram_server_that_makes_no_sense_or_cannot_prove_itself_is_left(challenges, why):
    it = ScramSha256(login(), "rOprNGfwEbeRWgbNEkqO")
    *before, last = challenges
    for challenge in before:
        it.respond(challenge)
    with pytest.raises(Misled, match=why):
        it.respond(last)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_success_before_the_server_has_proved_itself_is_none(taken: int):
    it = ScramSha256(login(), "rOprNGfwEbeRWgbNEkqO")
    for challenge in [b"", SERVER_FIRST][:taken]:
        it.respond(challenge)
    with pytest.raises(Misled, match="has not proved"):
        it.check()


@pytest.mark.parametrize("name", [MechanismName.PLAIN, MechanismName.LOGIN, MechanismName.CRAM_MD5])
def test_a_server_that_asks_on_and_on_is_left(name: MechanismName):
    it = begun(name)
    with pytest.raises(Misled):
        for _ in range(4):
            it.respond(b"more")


@pytest.mark.parametrize("name", [MechanismName.LOGIN, MechanismName.CRAM_MD5])
def test_a_server_that_is_content_before_it_knows_who_we_are_is_left(name: MechanismName):
    with pytest.raises(Misled, match="content before"):
        begun(name).check()


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=80) | st.sampled_from([b"", SERVER_FIRST, SERVER_FINAL]), max_size=6))
def test_any_challenges_are_answered_or_refused(challenges: list[bytes]):
    for name in MechanismName:
        it = begun(name)
        try:
            for challenge in challenges:
                it.respond(challenge)
        except Misled as error:
            assert "pencil" not in str(error)


@given(st.binary(max_size=3000))
def test_a_challenge_is_base64_or_refused(line: bytes):
    try:
        assert base64.b64encode(decode_challenge(line)) == line.strip()
    except Misled:
        pass


def test_a_login_does_not_show_its_password():
    assert "pencil" not in repr(login())


def test_names_and_passwords_are_prepared():
    assert prepare("I\u00adX") == "IX" and prepare("\u00aa") == "a" and prepare("\u2168") == "IX"
    assert prepare("a\u00a0b") == "a b"


@pytest.mark.parametrize("text", ["", "\u00ad", "a\0", "a\x07", "\u06271", "a\u0627", "\ue000", "\u0221"])
def test_what_can_be_neither_name_nor_password_is_refused(text: str):
    with pytest.raises(ValueError, match=r"empty|may not hold|mixes"):
        prepare(text)
