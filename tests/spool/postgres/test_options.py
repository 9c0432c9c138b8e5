"""Where the database is: URLs and passwords, from a hand that may have written anything."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.spool.postgres.opening import _place as place
from gateway.spool.postgres.options import PostgresOptions, PostgresServer, parse_url, password


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("postgresql://db/mail", PostgresServer((("db", 5432),), "mail")),
        ("postgres://me@db:6000/mail", PostgresServer((("db", 6000),), "mail", "me")),
        ("postgresql://me@[2001:db8::1],db2:1/mail", PostgresServer((("2001:db8::1", 5432), ("db2", 1)), "mail", "me")),
        ("postgresql://%2Frun%2Fpostgresql/mail", PostgresServer((("/run/postgresql", 5432),), "mail")),
        ("postgresql://a%40b@db/m%20l", PostgresServer((("db", 5432),), "m l", "a@b")),
    ],
)
def test_a_url_names_hosts_user_and_database(url: str, server: PostgresServer) -> None:
    assert parse_url(url) == server


@pytest.mark.parametrize(
    "url",
    [
        "",
        "postgresql://",
        "postgresql://db",
        "postgresql://db/",
        "postgresql:///mail",
        "postgresql://db/mail?sslmode=disable",
        "postgresql://db:0/mail",
        "postgresql://db:65536/mail",
        "postgresql://[::g]/mail",
        "postgresql://a,,b/mail",
        "postgresql://" + ",".join("abcdefghi") + "/mail",
        "postgresql://a b/mail",
        "postgresql://%00/mail",
        "postgresql://%2Frun%0A/mail",
        "postgresql://db/%00",
        "postgresql://db/%FF",
        "postgresql://db/" + "m" * 64,
        "mysql://db/mail",
    ],
)
def test_what_is_no_url_of_a_database_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        parse_url(url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="password_file") as refused:
        parse_url("postgresql://me:hush@db/mail")
    assert "hush" not in str(refused.value)


@given(st.text(max_size=60) | st.from_regex(r"postgresql://[!-~]{0,40}/[!-~]{0,20}", fullmatch=True))
def test_whatever_stands_there_is_a_server_or_refused(text: str) -> None:
    try:
        server = parse_url(text)
    except ValueError:
        return
    assert server.hosts and server.database and all(0 < port < 65536 for _, port in server.hosts)


def test_the_password_is_the_variables_or_the_files_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    options = PostgresOptions(parse_url("postgresql://db/mail"), str(file), "GATEPOST_TEST_PASSWORD")
    file.write_bytes(b"hush hush\r\nmore\n")
    assert password(options) == "hush hush"
    monkeypatch.setenv("GATEPOST_TEST_PASSWORD", "louder")
    assert password(options) == "louder"
    monkeypatch.delenv("GATEPOST_TEST_PASSWORD")
    for spoilt in (b"", b"\nhush", b"\xff\n", b"x" * 5000):
        file.write_bytes(spoilt)
        with pytest.raises(ValueError):
            password(options)


def test_a_directory_that_has_its_name_needs_no_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name = place(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    assert place(tmp_path) == name
    assert [path.name for path in tmp_path.iterdir()] == ["place.id"]
