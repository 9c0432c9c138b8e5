"""Zones signed by knot, behind an unbound that validates them: DNSSEC as a resolver on this machine sees it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from gateway.sdk.services import Tlsa
from tests.support.process import Process, binary, free_port, new_directory, wait_until

SIGNED = "signed.test"
"""Validated."""
PLAIN = "plain.test"
"""Not signed, and nobody says that it is."""
BOGUS = "bogus.test"
"""Signed by another key than the one that unbound trusts for it."""

_APEX = "@ 60 SOA ns hostmaster 1 3600 600 86400 60\n@ 60 NS ns\nns 60 A 127.0.0.1\n"


def tlsa_line(name: str, port: int, record: Tlsa) -> str:
    """A zone line."""
    return f"_{port}._tcp.{name} 60 TLSA {record} {record.data.hex()}"


class SignedZones:
    """The zones `SIGNED`, `PLAIN` and `BOGUS` with these lines in them, names relative to the zone."""

    def __init__(self, zones: Mapping[str, Sequence[str]]) -> None:
        self.home = new_directory("signed")
        self.home.chmod(0o777)
        self.knot_port, self.port = free_port(), free_port()
        (self.home / "keys").mkdir(mode=0o777)
        config = (
            f"server:\n  listen: 127.0.0.1@{self.knot_port}\n  rundir: {self.home}\n"
            f"log:\n  - target: stderr\n    any: info\n"
            f"database:\n  storage: {self.home}/keys\n"
            "policy:\n  - id: quick\n    algorithm: ecdsap256sha256\n    nsec3: off\nzone:\n"
        )
        for zone in (SIGNED, PLAIN, BOGUS):
            (self.home / f"{zone}.zone").write_text(f"$ORIGIN {zone}.\n{_APEX}" + "\n".join(zones.get(zone, ())) + "\n")
            config += f"  - domain: {zone}\n    file: {self.home}/{zone}.zone\n    zonefile-sync: -1\n"
            config += "    zonefile-load: difference-no-serial\n    journal-content: all\n"
            if zone != PLAIN:
                config += "    dnssec-signing: on\n    dnssec-policy: quick\n"
        (self.home / "knot.conf").write_text(config)
        self._knot = Process([binary("knotd"), "-c", str(self.home / "knot.conf")], self.home / "knot.log")
        # Each zone is trusted by the key of `SIGNED`, which is the wrong one for `BOGUS`.
        key = wait_until(self._key, "knot has signed its zone")
        anchors = "".join(f'  trust-anchor: "{zone}. DNSKEY {key}"\n' for zone in (SIGNED, BOGUS))
        stubs = "".join(
            f"stub-zone:\n  name: {zone}\n  stub-addr: 127.0.0.1@{self.knot_port}\n" for zone in (SIGNED, PLAIN, BOGUS)
        )
        (self.home / "unbound.conf").write_text(
            f"server:\n  interface: 127.0.0.1\n  port: {self.port}\n"
            f'  chroot: ""\n  username: ""\n  directory: "{self.home}"\n  pidfile: "{self.home}/pid"\n'
            "  do-daemonize: no\n  use-syslog: no\n  do-not-query-localhost: no\n"
            '  module-config: "validator iterator"\n  local-zone: "test." nodefault\n'
            + anchors
            + stubs
            # Gatepost's fake domains of other tests are not asked for; whatever is, is refused at once.
            + "remote-control:\n  control-enable: no\n"
        )
        try:
            self._unbound = Process(
                [binary("unbound"), "-d", "-c", str(self.home / "unbound.conf")], self.home / "unbound.log"
            )
            self._unbound.wait_ready(lambda: self._ask(self.port, SIGNED, "SOA").rcode() == dns.rcode.NOERROR)
        except BaseException:
            self._knot.stop()
            raise

    @property
    def address(self) -> str:
        """As it stands in `dns.nameservers`."""
        return f"127.0.0.1:{self.port}"

    @staticmethod
    def _ask(port: int, name: str, rdtype: str) -> dns.message.Message:
        query = dns.message.make_query(name, rdtype, want_dnssec=True)
        try:
            return dns.query.udp(query, "127.0.0.1", port=port, timeout=2)
        except dns.exception.DNSException as error:
            raise OSError(str(error)) from error

    def _key(self) -> str:
        """The key of `SIGNED` that vouches for its others, once the zone is signed."""
        for rrset in self._ask(self.knot_port, SIGNED, "DNSKEY").answer:
            for record in rrset:
                if rrset.rdtype == dns.rdatatype.DNSKEY and record.flags == 257:
                    return str(record.to_text())
        return ""

    def stop(self) -> None:
        self._unbound.stop()
        self._knot.stop()
        shutil.rmtree(self.home, ignore_errors=True)
