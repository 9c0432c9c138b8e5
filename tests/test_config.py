"""The configuration file: what is taken, what is refused, and that every problem names file, line and key."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.app.watch import files
from gateway.config import Config, ConfigError, RecipientCheck, json_schema, load
from gateway.config.document import DEPTH, FILE_OCTETS, read
from gateway.config.recipients import Recipients, local_part, parse_list
from gateway.config.reference import options
from gateway.pipeline.plan import PipelineError
from gateway.transport.transport import Kind, Security

LISTEN = 'listeners: [{address: "127.0.0.1:2525"}]\n'


def problems(folder: Path, text: str) -> list[str]:
    """What is wrong with a file of this text, without the directory in front."""
    file = folder / "gatepost.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(file))
    return [str(p).replace(str(folder) + "/", "") for p in caught.value.problems]


def good(folder: Path, text: str) -> Config:
    file = folder / "gatepost.yaml"
    file.write_text(text)
    return load(str(file))


@pytest.fixture(scope="session")
def key_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with tls.crt, tls.key and other.key."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("tls", "other"):
        subprocess.run(
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=mx.example.org"
            f" -keyout {name}.key -out {name}.crt".split(),
            cwd=folder,
            check=True,
            capture_output=True,
        )
    return folder


def test_the_fixed_keys_of_the_plan_are_read(tmp_path: Path, key_pair: Path) -> None:
    config = good(
        tmp_path,
        f"""
hostname: MX.example.org
workers: 2
listeners:
  - address: "127.0.0.1:2525"
    role: edge
    tls: {{certificate: {key_pair}/tls.crt, key: {key_pair}/tls.key, mode: implicit}}
    proxy_protocol: {{trusted: ["10.0.0.0/8"]}}
    xclient: {{trusted: ["127.0.0.1/32"]}}
    pipeline: default
  - {{address: "[::1]:2525", pipeline: relaxed}}
admin: {{address: "127.0.0.1:9925"}}
spool: {{path: ./var/spool}}
state: {{path: ./var/state}}
dns: {{nameservers: ["127.0.0.1:5353", "::1"], timeout: 5s}}
limits: {{message_size: 50MiB, recipients: 100, sessions: 1000, sessions_per_client: 50}}
relay_from: ["127.0.0.0/8"]
domains:
  example.org: {{next_hop: "lmtp:127.0.0.1:2424", recipients: {{list: [Anna, ben]}}}}
  example.net: {{next_hop: "smtp:store.example.net:25", recipients: {{verify: callout}}, tls: verify,
                tls_ca: {key_pair}/tls.crt}}
  example.com: {{next_hop: "maildir:./var/mail", recipients: any, pipeline: relaxed}}
routes: {{default: mx}}
retry: {{first: 5m, max: 1h, give_up: 5d, warn_after: 4h}}
pipeline: []
pipelines: {{relaxed: []}}
""",
    )
    assert config.hostname == config.authserv_id == "mx.example.org"
    first = config.listeners[0]
    assert (first.address.host, first.address.port, str(first.address)) == ("127.0.0.1", 2525, "127.0.0.1:2525")
    assert first.tls is not None and first.tls.mode == "implicit"
    assert str(config.listeners[1].address) == "[::1]:2525"
    assert config.spool.path == str(tmp_path / "var/spool")
    assert [str(n) for n in config.dns.nameservers] == ["127.0.0.1:5353", "[::1]:53"]
    assert config.limits.message_size == 50 << 20 and config.retry.give_up == 5 * 86400
    org, net, com = (config.domains[f"example.{top}"] for top in ("org", "net", "com"))
    assert (org.check, org.listed) == (RecipientCheck.LIST, {"anna", "ben"})
    assert (net.check, net.destination.security) == (RecipientCheck.CALLOUT, Security.VERIFY)
    assert net.destination.tls_ca == str(key_pair / "tls.crt")
    assert (com.check, com.destination.kind, com.destination.path) == (
        RecipientCheck.ANY,
        Kind.MAILDIR,
        str(tmp_path / "var/mail"),
    )
    assert config.routes.default.destination.mx
    assert config.all_pipelines == {"default": (), "relaxed": ()}


def test_clients_are_asked_for_certificates_by_cas_in_a_file(tmp_path: Path, key_pair: Path) -> None:
    tls = f"certificate: {key_pair}/tls.crt, key: {key_pair}/tls.key"

    def listeners(more: str) -> str:
        return f'listeners: [{{address: "127.0.0.1:2525", tls: {{{tls}{more}}}}}]\n'

    (listener,) = good(tmp_path, listeners("")).listeners
    assert listener.tls and (listener.tls.client_ca, listener.tls.client_certificate) == (None, "ask")
    config = good(tmp_path, listeners(f", client_ca: {key_pair}/other.crt"))
    assert config.listeners[0].tls and config.listeners[0].tls.client_certificate == "ask"
    # Reload looks at it as it does at the certificate.
    assert str(key_pair / "other.crt") in files(config)
    (tmp_path / "none.pem").write_text("# nobody yet\n")
    for more, problem in (
        (", client_certificate: require", "client_certificate: client_ca must say by which CAs"),
        (", client_ca: none.pem", "client_ca: none.pem cannot be used: it holds no certificate, or"),
        (f", client_ca: {key_pair}/tls.key", f"client_ca: {key_pair}/tls.key cannot be used: it holds no certificate"),
        (f", client_ca: {key_pair}/tls.crt, client_certificate: demand", "client_certificate: must be 'ask' or"),
    ):
        (found,) = problems(tmp_path, listeners(more))
        assert found.startswith("gatepost.yaml:1:") and f"listeners[0].tls.{problem}" in found


def test_recipients_are_asked_for_by_callout_where_the_next_hop_can_be_asked(tmp_path: Path) -> None:
    config = good(
        tmp_path,
        LISTEN
        + "domains: {a.example: {next_hop: 'smtp:127.0.0.1:26'}, b.example: {next_hop: 'maildir:./m'},"
        + " c.example: {next_hop: discard}, .d.example: {next_hop: 'lmtp:unix:./lmtp'}}",
    )
    checks = [domain.check.value for domain in config.domains.values()]
    assert checks == ["callout", "any", "any", "callout"]
    assert config.domains[".d.example"].destination.path == str(tmp_path / "lmtp")


def test_domain_names_are_compared_as_a_labels(tmp_path: Path) -> None:
    config = good(tmp_path, LISTEN + "domains: {BÜCHER.example: {next_hop: discard}}")
    assert list(config.domains) == ["xn--bcher-kva.example"]


def test_a_list_file_holds_one_local_part_a_line(tmp_path: Path) -> None:
    (tmp_path / "people").write_text("# staff\nAnna\n\nben.b\n")
    config = good(tmp_path, LISTEN + "domains: {a.example: {next_hop: discard, recipients: {list_file: people}}}")
    assert config.domains["a.example"].listed == {"anna", "ben.b"}


@pytest.mark.parametrize("text", ["", "# nobody yet\n\n"])
def test_a_list_file_without_anybody_is_one_that_is_just_being_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "people").write_text(text)
    (problem,) = problems(
        tmp_path, LISTEN + "domains: {a.example: {next_hop: discard, recipients: {list_file: people}}}"
    )
    assert "no address in it; to take mail for nobody, write list: []" in problem


@pytest.mark.parametrize("first", ["anna", "# staff\nanna"])
def test_a_byte_order_mark_is_not_of_the_first_name(first: str) -> None:
    assert parse_list(f"\ufeff{first}\nben\n".encode()) == {"anna", "ben"}


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"]), max_size=80), max_size=5))
def test_the_quick_way_to_read_a_line_takes_what_the_grammar_takes_and_nothing_else(lines: list[str]) -> None:
    data = "\n".join(["anna", *lines]).encode()
    expected = {"anna"}
    wrong = False
    for line in data.splitlines():
        text = line.strip()
        if text and not text.startswith(b"#"):
            try:
                expected.add(local_part(text.decode()))
            except ValueError:
                wrong = True
    try:
        assert parse_list(data) == expected
        assert not wrong
    except ValueError:
        assert wrong


LDAP = "ldap: {uri: 'ldap://127.0.0.1', base: 'ou=people,dc=example'"


@pytest.mark.parametrize(
    ("recipients", "expected"),
    [
        ("{verify: callout, list: [anna]}", "recipients: give one of list, list_file, verify and ldap"),
        ("{when_down: defer}", "recipients: give one of list, list_file, verify and ldap"),
        ("{verify: callout, when_down: wait}", "recipients.when_down: must be 'defer' or 'accept'"),
        ("{list: [anna], when_down: accept}", "recipients.when_down: means nothing for a list, which is never down"),
        ("{verify: callout, subaddress: '+'}", "recipients.subaddress: does not go with verify: callout"),
        ("{list: [anna], subaddress: a}", 'recipients.subaddress: expected separators such as "+" or "+-"'),
        ("{list: [anna], subaddress: ''}", 'recipients.subaddress: expected separators such as "+" or "+-"'),
        ("{" + LDAP + ", bind_dn: 'cn=x'}}", "recipients.ldap.bind_dn: needs password_file, too"),
        ("{" + LDAP + ", password_file: secret}}", "recipients.ldap.password_file: needs bind_dn, too"),
        (
            "{" + LDAP + ", bind_dn: 'cn=x', password_file: empty}}",
            "recipients.ldap.password_file: the first line is empty; it must hold the password",
        ),
        ("{" + LDAP + ", bind_dn: x, password_file: secret}}", "recipients.ldap.bind_dn: is no distinguished name"),
        ("{" + LDAP + ", filter: 'mail=%s'}}", "recipients.ldap.filter: is no LDAP filter"),
        ("{" + LDAP + ", filter: '(mail=%x)'}}", "recipients.ldap.filter: '%x' is no placeholder"),
        ("{" + LDAP + ", filter: '(mail=*)'}}", "recipients.ldap.filter: names no recipient"),
        ("{" + LDAP + ", tls_ca: ca.pem}}", "recipients.ldap.tls_ca: means nothing without ldaps:// or starttls: true"),
        ("{" + LDAP + ", connections: 0}}", "recipients.ldap.connections: must be greater than or equal to 1"),
        ("{ldap: {uri: 'ldap://x'}}", "recipients.ldap.base: this key is required"),
        ("{ldap: {uri: [], base: 'dc=x'}}", "recipients.ldap.uri: must have at least one entry"),
        ("{ldap: {uri: 'http://x', base: 'dc=x'}}", "'http://x' is no LDAP server; write ldap://host"),
        (
            "{ldap: {uri: 'ldaps://x', base: 'dc=x', starttls: true}}",
            "recipients.ldap.starttls: does not go with ldaps",
        ),
        ("{" + LDAP + ", tiemout: 3s}}", "recipients.ldap.tiemout: unknown key; did you mean timeout?"),
    ],
)
def test_what_is_wrong_with_recipients_is_named(tmp_path: Path, key_pair: Path, recipients: str, expected: str) -> None:
    (tmp_path / "secret").write_text("hush-hush\n")
    (tmp_path / "empty").write_text("\nhush-hush\n")
    (tmp_path / "ca.pem").write_bytes((key_pair / "tls.crt").read_bytes())
    found = problems(
        tmp_path, LISTEN + f"domains: {{a.example: {{next_hop: 'smtp:127.0.0.1:26', recipients: {recipients}}}}}\n"
    )
    assert any(expected in problem for problem in found), found
    assert "hush" not in str(found)


def test_an_ldap_directory_is_read_with_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush-hush\n")
    config = good(
        tmp_path,
        LISTEN
        + "domains: {a.example: {next_hop: discard, recipients: {when_down: accept, subaddress: +, ldap: {"
        + "uri: ['ldaps://ldap1.example', 'ldaps://ldap2.example:1636'], base: 'dc=a,dc=example',"
        + " bind_dn: 'cn=gatepost,dc=a,dc=example', password_file: secret}}}}",
    )
    domain = config.domains["a.example"]
    assert domain.check is RecipientCheck.LDAP
    assert isinstance(domain.recipients, Recipients) and domain.recipients.ldap is not None
    options = domain.recipients.ldap.options()
    assert [str(server) for server in options.servers] == ["ldaps://ldap1.example:636", "ldaps://ldap2.example:1636"]
    assert (options.filter, options.timeout, options.scope) == ("(mail=%s)", 4.0, "subtree")
    assert options.password_file == str(tmp_path / "secret")
    assert "hush" not in repr(config) + repr(options)


def test_without_the_package_ldap_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ldap3", None)
    found = problems(tmp_path, LISTEN + "domains: {a.example: {next_hop: discard, recipients: {" + LDAP + "}}}}\n")
    assert any("needs the package ldap3: install gatepost[ldap]" in problem for problem in found)


def test_redis_is_read_with_its_files_and_shown_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hush\n")
    given = "{url: 'redis://gate@Redis.example/2', password_file: secret, timeout: 300ms, fallback: none}"
    config = good(tmp_path, LISTEN + f"state: {{path: here, redis: {given}}}\n")
    assert config.state.redis is not None
    options = config.state.redis.options()
    assert (str(options.server), options.server.user) == ("redis://redis.example:6379/2", "gate")
    assert (options.timeout, options.prefix, options.connections) == (0.3, "gatepost", 8)
    assert config.state.redis.fallback == "none"
    assert options.password_file == str(tmp_path / "secret")
    assert "hush" not in repr(config) + repr(options)
    (tmp_path / "secret").write_text("\n")
    (found,) = problems(tmp_path, LISTEN + f"state: {{redis: {given}}}\n")
    assert "state.redis.password_file: the first line is empty" in found
    monkeypatch.setitem(sys.modules, "redis", None)
    (found,) = problems(tmp_path, LISTEN + f"state: {{redis: {given}}}\n")
    assert "state.redis: needs the package redis: install gatepost[redis]" in found


def test_a_shared_spool_is_read_in_either_form_and_shown_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hush\n")
    short = good(tmp_path, LISTEN + "spool: {postgres: 'postgresql://gate@Db.example/mail'}\n").spool.postgres
    assert short is not None and (short.timeout, short.lease, short.tls) == (10.0, 30.0, "prefer")
    given = "{url: 'postgresql://gate@one,two:5433/mail', password_file: secret, timeout: 3s, namespace: other}"
    config = good(tmp_path, LISTEN + f"spool: {{path: here, postgres: {given}}}\n")
    options = config.spool.options().postgres
    assert options is not None and str(options.server) == "postgresql://one:5432,two:5433/mail"
    assert (options.server.user, options.timeout, options.schema) == ("gate", 3.0, "other")
    assert options.password_file == str(tmp_path / "secret")
    assert "hush" not in repr(config) + repr(options)
    (tmp_path / "secret").write_text("\n")
    (found,) = problems(tmp_path, LISTEN + f"spool: {{postgres: {given}}}\n")
    assert "spool.postgres.password_file: the first line is empty" in found
    monkeypatch.setitem(sys.modules, "psycopg", None)
    (found,) = problems(tmp_path, LISTEN + "spool: {postgres: 'postgresql://db/mail'}\n")
    assert "spool.postgres: needs the package psycopg: install gatepost[postgres]" in found


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("lease: 15s, timeout: 10s", "lease", "must be at least twice the timeout"),
        ("password_env: NOT_SET_HERE", "password_env", "the environment variable NOT_SET_HERE is not set"),
        ("tls_certificate: gatepost.yaml", "tls_certificate", "needs tls_key, too"),
        ("namespace: pg_mail", "namespace", "expected lower-case letters"),
        ("namespace: 'a\"b'", "namespace", "expected lower-case letters"),
        ("tls: off", "tls", ""),
    ],
)
def test_what_contradicts_itself_about_a_shared_spool_is_named(tmp_path: Path, text: str, key: str, said: str) -> None:
    (found,) = problems(tmp_path, LISTEN + f"spool: {{postgres: {{url: 'postgresql://a@db/mail', {text}}}}}\n")
    assert f"spool.postgres.{key}: {said}" in found


def test_a_password_without_a_user_and_a_ca_that_nobody_asks_are_named(tmp_path: Path, key_pair: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    for text, key in (
        ("url: 'postgresql://db/mail', password_file: secret", "url: names no user"),
        (f"url: 'postgresql://db/mail', tls_ca: {key_pair}/tls.crt", "tls_ca: means nothing without tls: verify"),
    ):
        (found,) = problems(tmp_path, LISTEN + f"spool: {{postgres: {{{text}}}}}\n")
        assert f"spool.postgres.{key}" in found


def test_a_bad_line_in_a_list_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "people").write_text("anna\nben@a.example\n")
    text = LISTEN + "domains:\n  a.example:\n    next_hop: discard\n    recipients: {list_file: people}"
    (problem,) = problems(tmp_path, text)
    assert problem.startswith("gatepost.yaml:5: domains.a.example.recipients.list_file: ")
    assert "people line 2" in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listners: []\n", "gatepost.yaml:2: listners: unknown key; did you mean listeners?"),
        ("limits:\n  recipents: 3\n", "gatepost.yaml:3: limits.recipents: unknown key; did you mean recipients?"),
        ("workers: many\n", "gatepost.yaml:2: workers: must be a whole number"),
        ("workers: true\n", "gatepost.yaml:2: workers: must be a whole number"),
        ("spool:\n  record: 1\n", "gatepost.yaml:3: spool.record: must be true or false"),
        ("limits: 3\n", "gatepost.yaml:2: limits: must be a mapping of keys to values"),
        ("relay_from: 10.0.0.0/8\n", "gatepost.yaml:2: relay_from: must be a list"),
        ("hostname: a\nhostname: b\n", "gatepost.yaml:3: hostname: key given twice; first on line 2"),
        (
            "relay_from:\n  - 10.0.0.0/8\n  - 10.0.0.1/8\n",
            "gatepost.yaml:4: relay_from[1]: has bits beyond its mask; write 10.0.0.0/8",
        ),
        (
            "relay_from: [10.0.0/8]\n",
            "gatepost.yaml:2: relay_from[0]: expected a network such as 10.0.0.0/8 or 2001:db8::/32",
        ),
        (
            "retry: {first: 5}\n",
            "gatepost.yaml:2: retry.first: expected a duration with its unit: 500ms, 30s, 5m, 2h or 5d",
        ),
        ("retry: {first: 2h, max: 1h}\n", "gatepost.yaml:2: retry.max: is shorter than retry.first"),
        ("limits: {header_size: 1MiB}\n", "gatepost.yaml:2: limits.header_size: must be between 1KiB and 256KiB"),
        ("hostname: '[127.0.0.1]'\n", "gatepost.yaml:2: hostname: expected a domain name, not an address"),
        (
            "admin: {address: '0.0.0.0:9925'}\n",
            "gatepost.yaml:2: admin.address: an address that is not a loopback one needs admin.token",
        ),
        (
            "spool: {postgres: 'postgresql://db'}\n",
            "gatepost.yaml:2: spool.postgres: is no URL of a database; write postgresql://USER@HOST:PORT/DATABASE",
        ),
        (
            "spool: {postgres: {url: 'postgresql://me:hush@db/mail'}}\n",
            "gatepost.yaml:2: spool.postgres.url: has a password in it; write postgresql://USER@HOST and put the"
            " password into password_file",
        ),
        ("state: {redis: 'redis://db'}\n", "gatepost.yaml:2: state.redis: must be a mapping of keys to values"),
        (
            "state: {redis: {url: 'http://db'}}\n",
            "gatepost.yaml:2: state.redis.url: "
            "is no URL of a Redis server; write redis://HOST:PORT/DATABASE, or rediss:// for TLS",
        ),
        (
            "state: {redis: {url: 'redis://gate:tOpSecret@db'}}\n",
            "gatepost.yaml:2: state.redis.url: "
            "has a password in it; write redis://USER@HOST and put the password into password_file",
        ),
        (
            "state: {redis: {url: 'redis://gate@db'}}\n",
            "gatepost.yaml:2: state.redis.url: names a user; give password_file or password_env, too",
        ),
        (
            "state: {redis: {url: 'redis://db', tls_certificate: gatepost.yaml}}\n",
            "gatepost.yaml:2: state.redis.tls_certificate: needs tls_key, too",
        ),
        (
            "state: {redis: {url: 'redis://db', password_env: GATEPOST_NO_SUCH_VARIABLE}}\n",
            "gatepost.yaml:2: state.redis.password_env: the environment variable GATEPOST_NO_SUCH_VARIABLE is not set",
        ),
        (
            "domains: {a.example: {next_hop: discard, pipeline: nosuch}}\n",
            "gatepost.yaml:2: domains.a.example.pipeline: there is no pipeline 'nosuch'",
        ),
        ("domains: {a.example: {}}\n", "gatepost.yaml:2: domains.a.example.next_hop: this key is required"),
        (
            "domains: {a.example: {next_hop: 'smtp:x:25', tls: strict}}\n",
            "gatepost.yaml:2: domains.a.example.tls: "
            "must be 'none', 'opportunistic', 'require', 'verify', 'dane' or 'dane-only'",
        ),
        (
            "domains: {a.example: {next_hop: 'smtp:192.0.2.1:25', tls: dane}}\n",
            "gatepost.yaml:2: domains.a.example.tls: "
            "an address has no TLSA records; name the next hop by its host name",
        ),
        (
            "domains: {a.example: {next_hop: 'smtp:x:25', tls: verify, tls_names: ['*.example']}}\n",
            "gatepost.yaml:2: domains.a.example.tls_names[0]: "
            "expected a name, or a dot and a domain for all names below it",
        ),
        (
            "domains: {a.example: {next_hop: 'maildir:x', tls: none}}\n",
            "gatepost.yaml:2: domains.a.example.tls: means nothing for maildir",
        ),
        (
            "domains: {a.example: {next_hop: discard, recipients: {verify: callout}}}\n",
            "gatepost.yaml:2: domains.a.example.recipients: discard cannot be asked for its recipients",
        ),
        (
            "domains: {a.example: {next_hop: discard, recipients: {}}}\n",
            "gatepost.yaml:2: domains.a.example.recipients: give one of list, list_file, verify and ldap",
        ),
        (
            "domains: {a.example: {next_hop: discard, recipients: all}}\n",
            "gatepost.yaml:2: domains.a.example.recipients: "
            "expected any, or a mapping with one of list, list_file, verify and ldap",
        ),
        (
            "domains:\n  a.example: {next_hop: discard}\n  A.Example: {next_hop: discard}\n",
            "gatepost.yaml:4: domains.A.Example: is the same domain as a.example",
        ),
        (
            "pipelines: {default: []}\n",
            "gatepost.yaml:2: pipelines.default: is the name of the top-level pipeline; write it under `pipeline`",
        ),
        (
            "pipelines: {Big Name: []}\n",
            "gatepost.yaml:2: pipelines.Big Name: must be a name of lower-case letters, digits, - and _",
        ),
        (
            "hostname: !!python/name:os.system x\n",
            "gatepost.yaml:2: hostname: the tag tag:yaml.org,2002:python/name:os.system is not understood, "
            "or the value does not fit it",
        ),
    ],
)
def test_a_problem_names_file_line_and_key(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, LISTEN + text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'listeners:\n  - address: "127.0.0.1:2525"\n  - address: "127.0.0.1:2525"\n',
            "gatepost.yaml:3: listeners[1].address: listeners[0] has the same address",
        ),
        (
            'listeners:\n  - address: "127.0.0.1:9925"\n',
            "gatepost.yaml:2: listeners[0].address: admin has the same address",
        ),
        (
            'listeners:\n  - {address: "127.0.0.1:25", role: submission}\n',
            "gatepost.yaml:2: listeners[0].role: a submission listener is not built yet; edge is",
        ),
        (
            'listeners:\n  - {address: "127.0.0.1:25", pipeline: relxed}\npipelines: {relaxed: []}\n',
            "gatepost.yaml:2: listeners[0].pipeline: there is no pipeline 'relxed'; did you mean relaxed?",
        ),
        (
            'listeners:\n  - {address: ":25"}\n',
            "gatepost.yaml:2: listeners[0].address: expected an IP address and port such as 127.0.0.1:25 or [::1]:25; "
            "for all addresses write 0.0.0.0:25 or [::]:25",
        ),
        ("listeners: []\n", "gatepost.yaml:1: listeners: must have at least one entry"),
        ("hostname: mx.example.org\n", "gatepost.yaml:1: listeners: this key is required"),
        ("", "gatepost.yaml:1: listeners: this key is required"),
        (
            'listeners:\n  - address: "127.0.0.1:25"\n    tls: {certificate: no.crt, key: no.key}\n',
            "gatepost.yaml:3: listeners[0].tls.key: cannot read no.key: No such file or directory",
        ),
    ],
)
def test_a_problem_with_a_listener_names_file_line_and_key(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)


def test_two_listeners_may_both_take_any_free_port(tmp_path: Path) -> None:
    config = good(tmp_path, 'listeners: [{address: "127.0.0.1:0"}, {address: "127.0.0.1:0"}]')
    assert [listener.address.port for listener in config.listeners] == [0, 0]


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, key_pair: Path) -> None:
    tls = f"{{certificate: {key_pair}/tls.crt, key: {key_pair}/other.key}}"
    (problem,) = problems(tmp_path, f'listeners:\n  - address: "127.0.0.1:25"\n    tls: {tls}\n')
    assert problem.startswith("gatepost.yaml:3: listeners[0].tls.certificate: certificate and key cannot be used")


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "workers: 0\nlisteners:\n  - {address: nonsense, pipeline: nosuch}\n"
        "limits: {errors: '3'}\nnosuch: 1\nworkers: 2\n",
    )
    assert [int(p.split(":")[1]) for p in found] == [1, 3, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x\n", "gatepost.yaml:2: aliases (*x) are not allowed here; write the value out"),
        ("a: [\n", "gatepost.yaml:2: no YAML: while parsing a flow node"),
        ("a: 1\n---\nb: 2\n", "gatepost.yaml:2: no YAML: expected a single document"),
        ("\n\na: b: c\n", "gatepost.yaml:3: no YAML: mapping values are not allowed here"),
        ("[" * 50_000, f"gatepost.yaml:1: nested deeper than {DEPTH} levels"),
        ("#" * (FILE_OCTETS + 1), "gatepost.yaml:1: larger than 1 MiB"),
        ("a: \x00\n", "gatepost.yaml:1: no YAML"),
        ('a: 1\nb: "\\U00110000"\n', "gatepost.yaml:2: no YAML: an escape that stands for no character"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', "gatepost.yaml:2: no YAML: an escape that stands for no character"),
        ("[1, 2]\n", "gatepost.yaml:1: must be a mapping of keys to values"),
    ],
)
def test_text_that_is_no_good_yaml_is_refused_as_a_whole(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(message)


@pytest.mark.parametrize("text", [r'policy_folder: "a\ud800"', r'spool: {path: "\udfff"}', r'"\ud800": 1'])
def test_half_a_character_is_refused_where_it_stands(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, f"{LISTEN}{text}\n")
    assert problem.startswith("gatepost.yaml:2: ") and "half a character" in problem


def test_a_character_that_json_writes_as_two_escapes_is_one() -> None:
    assert read(json.dumps({"a": "x\U0001f600", "\U0001f600": 1}), "f").values == {"a": "x\U0001f600", "\U0001f600": 1}


def test_a_file_that_is_not_utf_8_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"a: 1\nhostname: b\xfc\n")
    for name, expected in [("latin", "latin:2: not UTF-8"), ("none", "none:1: cannot be read: No such file")]:
        with pytest.raises(ConfigError) as caught:
            load(str(tmp_path / name))
        assert expected in str(caught.value)


def test_words_that_yaml_once_took_for_booleans_and_numbers_are_text() -> None:
    values = read("{a: no, b: on, c: 1:30, d: 2020-01-01, e: 0x10, f: true, g: 7, h: 1.5, i: ~, 1: x}", "f").values
    assert values == {
        **{"a": "no", "b": "on", "c": "1:30", "d": "2020-01-01", "e": "0x10"},
        **{"f": True, "g": 7, "h": 1.5, "i": None, "1": "x"},
    }


def test_a_problem_in_a_pipeline_entry_is_found_in_the_file(tmp_path: Path) -> None:
    config = good(tmp_path, LISTEN + "pipelines:\n  relaxed:\n    - spf: {}\n    - dnsbl:\n        zones: {}\n")
    error = PipelineError("no good", (2, "dnsbl", "zones"))
    (problem,) = config.pipeline_problems("relaxed", error, before=1)
    assert str(problem).endswith("gatepost.yaml:6: pipelines.relaxed[1].dnsbl.zones: no good")
    assert config.locate(("pipelines", "relaxed", 1, "dnsbl", "nosuch")).endswith("gatepost.yaml:5")


@pytest.mark.parametrize(
    "token", ["pässwort-of-sixteen", " a-token-of-sixteen", "a-token-of-sixteen ", "a-token\\tof-sixteen"]
)
def test_a_token_that_no_header_can_carry_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(ConfigError, match=r"admin\.token: must be printable ASCII, without blanks at its ends"):
        good(tmp_path, LISTEN + f'admin: {{token: "{token}"}}')


def test_a_secret_does_not_show_in_what_is_printed_of_the_configuration(tmp_path: Path) -> None:
    config = good(tmp_path, LISTEN + "admin: {token: very-secret-token-of-ours}")
    assert config.admin.token is not None
    assert config.admin.token.get_secret_value() == "very-secret-token-of-ours"
    assert "very-secret" not in repr(config) + config.model_dump_json()


def test_the_schema_knows_every_top_level_key_and_units() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False and schema["required"] == ["listeners"]
    first = schema["$defs"]["Retry"]["properties"]["first"]
    assert "string" in first["type"] and re.search(first["pattern"], "5m") and not re.search(first["pattern"], "5")


def test_every_option_has_a_description() -> None:
    assert [option.path for option in options(Config) if not option.text] == []


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read(text, "f")
    except ConfigError as error:
        assert error.problems


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(Config.model_fields)), inner),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(Config.model_fields)), _json, max_size=6))
def test_any_values_under_the_known_keys_give_a_configuration_or_problems(values: dict[str, object]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(json.dumps(values))
        file.flush()
        try:
            load(file.name)
        except ConfigError as error:
            assert error.problems
