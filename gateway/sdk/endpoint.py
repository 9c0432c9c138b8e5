"""Where a service that a plugin asks listens, and how to get there.

Host names go through the configured nameservers and the machine's hosts file, never through the system's resolver.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer

from gateway.sdk.hosts import from_hosts_file
from gateway.sdk.services import Dns, DnsStatus

_FORMS: Final = "write host:port, [ipv6]:port, inet:port@host or unix:/path"
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?)*\Z")
_PORT: Final = re.compile(r"[0-9]{1,5}\Z")
_PATH_OCTETS: Final = 107


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP port of a host (name or address), or, with `path`, a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(value: Any) -> Endpoint:
    """An endpoint from ``host:port``, ``[v6]:port``, ``inet:host:port``, ``inet:port@host`` or ``unix:/path``.

    Also understood are ``inet6:`` and ``local:``, as milters are written. Raises ValueError with what to write.
    """
    if isinstance(value, Endpoint):
        return value
    if not isinstance(value, str):
        raise ValueError(_FORMS)
    scheme, colon, rest = value.partition(":")
    if colon and scheme in ("unix", "local"):
        if not rest or "\0" in rest or len(rest.encode()) > _PATH_OCTETS:
            raise ValueError(f"a unix socket needs a path of at most {_PATH_OCTETS} octets")
        return Endpoint(path=rest)
    text = rest if colon and scheme in ("inet", "inet6") else value
    if "@" in text:
        port, _, host = text.partition("@")
    else:
        host, _, port = text.rpartition(":")
    return Endpoint(_host(host), _port(port))


def _host(text: str) -> str:
    text = text.lower()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    if not _NAME.match(text):
        raise ValueError(f"{text!r} is neither a host name nor an IP address; {_FORMS}")
    return text


def _port(text: str) -> int:
    if not _PORT.match(text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"{text!r} is no port; {_FORMS}")
    return int(text)


EndpointOption = Annotated[Endpoint, BeforeValidator(parse_endpoint), PlainSerializer(str, when_used="json")]
"""An endpoint among the options of a plugin."""


async def find_addresses(host: str, dns: Dns) -> list[str]:
    """Addresses of a host name or literal, IPv4 first. Raises OSError when there is none to be had."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    if found := await asyncio.to_thread(from_hosts_file, host):
        return found
    answers = await asyncio.gather(dns.lookup(host, "A"), dns.lookup(host, "AAAA"))
    if found := [record for answer in answers for record in answer.records if isinstance(record, str)]:
        return found
    problem = next((answer.problem for answer in answers if answer.status is DnsStatus.FAILED), "it has none")
    raise OSError(f"no address of {host}: {problem}")


async def dial(
    endpoint: Endpoint, dns: Dns, *, limit: int = 1 << 16
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect; of several addresses the first that answers. `limit` is the reader's, in octets.

    Raises OSError that says what failed. It waits as long as the entry's timeout lets it.
    """
    if endpoint.path:
        return await asyncio.open_unix_connection(endpoint.path, limit=limit)
    trouble: OSError | None = None
    for address in await find_addresses(endpoint.host, dns):
        try:
            return await asyncio.open_connection(address, endpoint.port, limit=limit)
        except OSError as error:
            trouble = error
    raise trouble or OSError(f"no address of {endpoint.host}")
