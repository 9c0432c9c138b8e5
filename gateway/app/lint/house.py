"""The machine and its front door, sizes, and what happens to mail that is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from gateway.app.lint import codes
from gateway.app.lint.certificate import inspect
from gateway.app.lint.disk import Disk
from gateway.app.lint.scene import Scene, kinds
from gateway.config.routes import Hop
from gateway.config.values import HostPort
from gateway.sdk.contents import VirusScan
from gateway.sdk.lint import Path, Remark
from gateway.sdk.options import format_duration, format_size
from gateway.services.dns_options import DnsOptions, system_servers
from gateway.transport.transport import Destination, Kind, Security

_DAY: Final = 86_400.0
_SOON: Final = 14 * _DAY
_GIVE_UP: Final = 4 * _DAY
"""RFC 5321 section 4.5.4.1."""
_NOT_PUBLIC: Final = (
    "localhost",
    "localdomain",
    "local",
    "internal",
    "lan",
    "home",
    "intranet",
    "invalid",
    "home.arpa",
)
"""Ends of names that nobody outside can look up (RFC 6761, and by custom)."""


def remarks(scene: Scene, disk_of: Callable[[str], Disk]) -> Iterator[Remark]:
    """All that is about the machine, sizes and delivery."""
    yield from _tls(scene)
    yield from _clients(scene)
    yield from _admin(scene)
    yield from _names(scene)
    yield from _disks(scene, disk_of)
    yield from _sizes(scene)
    yield from _retry(scene)
    yield from _split(scene)
    yield from _clear(scene)
    yield from _unvalidated(scene)
    yield from _certificates(scene)


def _tls(scene: Scene) -> Iterator[Remark]:
    for i, listener in scene.outside:
        if listener.tls is None:
            yield Remark(
                codes.NO_TLS,
                ("listeners", i),
                f"listeners[{i}] ({listener.address}) does not offer TLS",
                "whoever sees the network between a client and us reads what <anna@example.com> writes",
                "give it tls: {certificate: ..., key: ...}",
            )
            continue
        path: Path = ("listeners", i, "tls", "certificate")
        found = inspect(listener.tls.certificate, listener.tls.key, scene.config.hostname)
        if found.invalid:
            yield Remark(
                codes.EXPIRED,
                path,
                f"clients that check refuse the certificate: {found.invalid}",
                "senders that check (MTA-STS, DANE, many providers) do not deliver",
                "get another one, and reload",
            )
        elif found.ends and found.ends - scene.now < _SOON:
            days = max(0, int((found.ends - scene.now) // _DAY))
            yield Remark(
                codes.EXPIRING,
                path,
                f"the certificate ends in {days} days",
                "from then on senders that check (MTA-STS, DANE, many providers) do not deliver",
                "renew it, and see that the renewal reloads Gatepost",
            )
        if not found.fits:
            yield Remark(
                codes.OTHER_NAME,
                path,
                f"the certificate is not for {scene.config.hostname}",
                "a sender with MTA-STS that looks for the MX host's name finds another, and does not deliver",
                f"get one for {scene.config.hostname}, or let hostname be the name that the MX record has",
            )


def _clients(scene: Scene) -> Iterator[Remark]:
    """Who may come in by a certificate, and who cannot."""
    outside = {i for i, _ in scene.outside}
    for i, listener in enumerate(scene.config.listeners):
        tls = listener.tls
        if tls is None or tls.client_ca is None:
            continue
        if i in outside and tls.client_certificate == "require" and tls.mode == "starttls":
            yield Remark(
                codes.SHUT_OUT,
                ("listeners", i, "tls", "client_certificate"),
                f"listeners[{i}] ({listener.address}) breaks off TLS with all who have no certificate by client_ca",
                "other senders deliver in the clear, or not at all; and who never says STARTTLS is asked for none",
                "write ask, and let a rule judge session.tls.client; or give partners a listener of their own",
            )
        # Its X.509 library takes a while to import, and most gateways never need it.
        from gateway.smtp.certificate import read_authorities

        for authority in read_authorities(tls.client_ca):
            ends = authority.not_valid_after_utc.timestamp()
            if not authority.not_valid_before_utc.timestamp() <= scene.now <= ends:
                name = authority.subject.rfc4514_string()[:100]
                yield Remark(
                    codes.CA_ENDED,
                    ("listeners", i, "tls", "client_ca"),
                    f"{name} is not good at this time",
                    "no certificate by it verifies",
                    "put its successor into the file, and reload",
                )


def _admin(scene: Scene) -> Iterator[Remark]:
    address: HostPort = scene.config.admin.address
    if not address.ip.is_loopback:
        yield Remark(
            codes.OPEN_ADMIN,
            ("admin", "address"),
            f"the admin server listens at {address}, in the clear",
            "whoever sees the network reads its token, and then the queue and the quarantine",
            "keep it on 127.0.0.1, or let only your own network reach it",
        )


def _names(scene: Scene) -> Iterator[Remark]:
    config = scene.config
    written = config.written(("hostname",))
    name = config.hostname
    if "." not in name or any(name == end or name.endswith(f".{end}") for end in _NOT_PUBLIC):
        yield Remark(
            codes.NO_NAME,
            ("hostname",),
            f"our name is {name}" + ("" if written else ", which is what this machine says (hostname is not given)"),
            f"a server that we deliver to looks {name} up, finds nothing, and refuses our EHLO and our bounces",
            "write hostname: with the name that the MX record has and that leads back to our address",
        )
    if "." not in config.authserv_id and config.authserv_id != name:
        yield Remark(
            codes.SHORT_ID,
            ("authserv_id",),
            f"{config.authserv_id} may be the authserv_id of others, too (RFC 8601 section 2.5)",
            "a message comes with the Authentication-Results field of another who has the same id, and it is taken out",
            f"write a name in a domain of yours, such as {name}",
        )


def _disks(scene: Scene, disk_of: Callable[[str], Disk]) -> Iterator[Remark]:
    config = scene.config
    spool, state = disk_of(config.spool.path), disk_of(config.state.path)
    if spool.in_memory and not config.spool.postgres:
        yield Remark(
            codes.SPOOL_IN_MEMORY,
            ("spool", "path"),
            f"{config.spool.path} is on {spool.kind}",
            "the machine restarts, and mail for <anna@...> that we said 250 to is gone",
            "put the spool on a disk",
        )
    needed = config.spool.min_free + config.limits.message_size
    if spool.size < needed:
        yield Remark(
            codes.NO_ROOM,
            ("spool", "path"),
            f"{config.spool.path} is on a file system of {_rounded(spool.size)}, and one large message needs "
            f"{_rounded(needed)} (min_free and message_size)",
            "a client sends a large message, or any, and hears 452",
            "give it a larger disk, or lower spool.min_free and limits.message_size",
        )
    if state.in_memory and (config.spool.postgres or not spool.in_memory):
        yield Remark(
            codes.STATE_IN_MEMORY,
            ("state", "path"),
            f"{config.state.path} is on {state.kind}",
            "the machine restarts, and everybody who had passed the greylist is a stranger again",
            "put the state on a disk, unless it may be forgotten",
        )


def _rounded(octets: int) -> str:
    return f"{octets >> 20} MiB"


def _sizes(scene: Scene) -> Iterator[Remark]:
    largest = scene.config.limits.message_size
    for judged in scene.pipelines.values():
        for entry in judged.plan.entries:
            limit = entry.plugin.looks_up_to() if entry.plugin else None
            if limit is None or limit >= largest or entry.shadow:
                continue
            scans = VirusScan in kinds(entry)
            yield Remark(
                codes.BIG_UNSCANNED if scans else codes.BIG_UNCHECKED,
                judged.path_of(entry),
                f"{entry.name} looks at messages of {format_size(limit)} at most, and we take {format_size(largest)}",
                f"a stranger sends {'malware' if scans else 'spam'} in a message of {format_size(limit + 1024)}, and "
                f"{entry.name} lets it pass without having looked",
                "let it look at as much as limits.message_size allows, lower that, or have large messages refused",
            )


def _retry(scene: Scene) -> Iterator[Remark]:
    retry = scene.config.retry
    if retry.give_up < _GIVE_UP:
        yield Remark(
            codes.GIVES_UP_SOON if retry.give_up < _DAY else codes.GIVES_UP_EARLY,
            ("retry", "give_up"),
            f"mail is given up after {format_duration(retry.give_up)}, and 4d to 5d are asked for",
            "the store is down over a weekend, or another greylists us, and anna's mail is bounced or held",
            "write 5d (RFC 5321 section 4.5.4.1)",
        )
    if retry.warn_after and retry.warn_after >= retry.give_up:
        yield Remark(
            codes.NEVER_WARNED,
            ("retry", "warn_after"),
            f"warn_after ({format_duration(retry.warn_after)}) does not come before give_up "
            f"({format_duration(retry.give_up)})",
            "anna hears nothing until her mail has failed",
            "write a shorter warn_after, or 0 for never",
        )


def _split(scene: Scene) -> Iterator[Remark]:
    config = scene.config
    if config.split_refused == "discard":
        yield Remark(
            codes.THROWN_AWAY,
            ("split_refused",),
            "a copy that is refused after DATA while others are taken is thrown away",
            "<anna@example.com> writes to two of us, a filter errs for one of them, and nobody ever hears of that copy",
            "write split_refused: quarantine, where it can be found",
        )
    names = {domain.pipeline for domain in config.domains.values()}
    first = next((key for key, domain in config.domains.items() if domain.pipeline), "")
    if first and len(names) > 1 and config.split == "defer":
        yield Remark(
            codes.ONE_BY_ONE,
            ("split",) if config.written(("split",)) else ("domains", first, "pipeline"),
            "domains have different pipelines, and split: defer takes recipients of one at a time",
            f"a client writes to somebody at {first} and at another domain: the second hears 452, and gets it later",
            "write split: copies, unless the delay does not matter",
        )


def _clear(scene: Scene) -> Iterator[Remark]:
    places: list[tuple[Path, Destination]] = [(("domains", n, "tls"), d) for n, d in scene.destinations.items()]
    places += [((*path, "tls"), route.destination) for path, route in scene.config.routes.all.items()]
    for path, place in places:
        if place.kind in (Kind.SMTP, Kind.LMTP) and place.security is Security.NONE and not _near(place):
            yield Remark(
                codes.IN_THE_CLEAR,
                path,
                f"{place} is never asked for TLS",
                "whoever sees the network between us and it reads all mail",
                "write tls: opportunistic, require or verify",
            )


def _hops(scene: Scene) -> list[tuple[Path, Hop]]:
    config = scene.config
    domains: list[tuple[Path, Hop]] = [(("domains", name), domain) for name, domain in config.domains.items()]
    return [*domains, *config.routes.all.items()]


def _unvalidated(scene: Scene) -> Iterator[Remark]:
    config = scene.config
    servers = [(server.host, server.port) for server in config.dns.nameservers] or system_servers()
    if DnsOptions(dnssec=config.dns.dnssec).believes(servers):
        return
    for path, hop in _hops(scene):
        if hop.tls in (Security.DANE, Security.DANE_ONLY):
            what = "no mail is sent there" if hop.tls is Security.DANE_ONLY else "it is opportunistic, without DANE"
            yield Remark(
                codes.NOBODY_VALIDATES,
                (*path, "tls"),
                "DANE needs answers that DNSSEC validates, and no nameserver's word on that is taken",
                what,
                "list a validating nameserver on 127.0.0.1 only, or write dns.dnssec: trust when all of them validate",
            )


def _certificates(scene: Scene) -> Iterator[Remark]:
    for path, hop in _hops(scene):
        described = "tls_ca" if hop.tls_ca else "tls_names" if hop.tls_names else ""
        if described and hop.tls is not Security.VERIFY:
            yield Remark(
                codes.NOT_CHECKED,
                (*path, described),
                f"{described} means nothing with tls: {hop.tls.value}",
                "whoever gets between us and the next hop can show any certificate",
                "write tls: verify",
            )
        if hop.tls is Security.VERIFY and hop.destination.mx and not hop.tls_names:
            yield Remark(
                codes.NAMED_BY_DNS,
                (*path, "tls"),
                "the certificate must be for the mail host's name, and that comes from DNS",
                "who can forge DNS names a host of his own, with a good certificate",
                "write the names into tls_names, or tls: dane",
            )


def _near(place: Destination) -> bool:
    servers = place.servers
    return bool(servers) and all(
        hop.path or hop.host in ("localhost", "::1") or hop.host.startswith("127.") for hop in servers
    )
