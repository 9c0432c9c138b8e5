"""Connections to a real server that asks for a password and offers TLS; texts on their way there and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.spool.postgres.database import Database, Lost, Unconnected, clean, connect
from tests.support.postgres_server import PostgresServer
from tests.support.servers import Certificate, make_certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def server(certificate: Certificate) -> Iterator[PostgresServer]:
    server = PostgresServer("fsync=off", "synchronous_commit=off", password="open sesame", certificate=certificate)
    yield server
    server.stop()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("open sesame\n")
    return file


@pytest.fixture
def db(server: PostgresServer, secret: Path) -> Iterator[Database]:
    made = connect(server.options(password_file=str(secret)), "test")
    yield made
    made.close()


def test_the_password_is_read_at_each_connection_and_never_said(server: PostgresServer, secret: Path) -> None:
    options = server.options(password_file=str(secret))
    connect(options, "test").close()
    for wrong in ("close barley", ""):
        secret.write_text(f"{wrong}\n")
        with pytest.raises(psycopg.OperationalError) as refused:
            connect(options, "test")
        assert "password" in str(refused.value) and "barley" not in str(refused.value)
    secret.unlink()
    with pytest.raises(psycopg.OperationalError, match="the password cannot be read: No such file"):
        connect(options, "test")
    secret.write_text("open sesame\n")
    connect(options, "test").close()


def test_tls_is_used_and_the_servers_certificate_is_checked_when_that_is_asked(
    server: PostgresServer, secret: Path, certificate: Certificate, tmp_path: Path
) -> None:
    used = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    other = make_certificate(tmp_path)
    for tls, ca, encrypted in (
        ("none", "", False),
        ("prefer", "", True),
        ("require", "", True),
        ("verify", str(certificate.certificate), True),
        ("verify", str(other.certificate), None),
        ("verify", "", None),
    ):
        options = server.options(password_file=str(secret), tls=tls, tls_ca=ca)
        if encrypted is None:
            with pytest.raises(psycopg.OperationalError, match="certificate"):
                connect(options, "test")
            continue
        made = connect(options, "test")
        assert made.execute(used).fetchall() == [(encrypted,)]
        made.close()


def test_a_session_has_what_durability_rests_on_whatever_the_server_is_set_to(db: Database) -> None:
    assert db.execute("SHOW synchronous_commit").fetchall() == [("on",)]
    assert db.execute("SHOW transaction_isolation").fetchall() == [("read committed",)]
    assert db.execute("SHOW search_path").fetchall() == [("gatepost",)]
    assert db.execute("SHOW statement_timeout").fetchall() == [("5s",)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters() | st.sampled_from("\0\ud800\udcff?%$")), st.binary(max_size=300))
def test_texts_and_octets_come_back_as_they_went(db: Database, text: str, octets: bytes) -> None:
    row = db.execute("SELECT ?1::text, ?2::bytea, ?1 = ANY (?3::text[])", (text, octets, [text, "x"])).fetchone()
    assert row == (clean(text), octets, True)
    assert "\0" not in row[0] and len(row[0]) == len(text)


def test_where_there_is_no_connection_yet_nothing_is_asked() -> None:
    nowhere = Unconnected()
    assert nowhere.lost
    nowhere.close()
    with pytest.raises(Lost):
        nowhere.execute("SELECT 1")
