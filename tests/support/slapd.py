"""OpenLDAP's slapd with a small directory, and servers that only look like one."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.process import Process, binary, free_port, listens, new_directory
from tests.support.servers import Certificate

BASE = "dc=example,dc=test"
PEOPLE = f"ou=people,{BASE}"
READER = f"cn=reader,{BASE}"
PASSWORD = "a secret, öffentlich nicht"

_CONFIG = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {home}/pid
{tls}
database mdb
suffix "{base}"
rootdn "cn=admin,{base}"
rootpw admin
directory {home}/db
access to attrs=userPassword by anonymous auth by * none
access to dn.subtree="{people}" by dn.exact="{reader}" read by * none
access to * by * read
"""

_TREE = f"""\
dn: {BASE}
objectClass: dcObject
objectClass: organization
o: Example
dc: example

dn: {PEOPLE}
objectClass: organizationalUnit
ou: people

dn: {READER}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: reader
userPassword: {PASSWORD}
"""


class Slapd:
    """A directory with one inetOrgPerson per address under `PEOPLE`, readable by `READER` only."""

    def __init__(self, addresses: Sequence[str], *, certificate: Certificate | None = None, port: int = 0) -> None:
        self.port, self.tls_port = port or free_port(), free_port()
        self.home = new_directory("slapd")
        (self.home / "db").mkdir()
        self._tls = certificate is not None
        tls = ""
        if certificate is not None:
            for source, name in ((certificate.certificate, "cert.pem"), (certificate.key, "key.pem")):
                shutil.copy(source, self.home / name)
            tls = f"TLSCertificateFile {self.home}/cert.pem\nTLSCertificateKeyFile {self.home}/key.pem"
        self._config = self.home / "slapd.conf"
        self._config.write_text(_CONFIG.format(home=self.home, base=BASE, people=PEOPLE, reader=READER, tls=tls))
        (self.home / "seed.ldif").write_text(
            _TREE + "".join(self._person(number, address) for number, address in enumerate(addresses))
        )
        add = [binary("slapadd"), "-f", str(self._config), "-l", str(self.home / "seed.ldif")]
        subprocess.run(add, check=True, capture_output=True, timeout=60)
        user = pwd.getpwnam("openldap")
        for path in [self.home, *self.home.rglob("*")]:
            os.chown(path, user.pw_uid, user.pw_gid)
        self.start()

    @staticmethod
    def _person(number: int, address: str) -> str:
        return (
            f"\ndn: uid=p{number},{PEOPLE}\nobjectClass: inetOrgPerson\n"
            f"uid: p{number}\ncn: Person {number}\nsn: Person\nmail: {address}\n"
        )

    def start(self) -> None:
        """Start it (again), with the same directory."""
        urls = f"ldap://127.0.0.1:{self.port}/" + (f" ldaps://127.0.0.1:{self.tls_port}/" if self._tls else "")
        argv = [binary("slapd"), "-h", urls, "-f", str(self._config), "-u", "openldap", "-g", "openldap", "-d", "stats"]
        self._process = Process(argv, self.home / "log")
        self._process.wait_ready(lambda: listens(self.port))

    def kill(self) -> None:
        """SIGKILL, by its own process id."""
        self._process.kill()

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Inside the block the kernel takes connections for it, and nobody answers."""
        self._process.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.signal(signal.SIGCONT)

    def add(self, number: int, address: str) -> None:
        """One person more, while it runs."""
        self._modify("ldapadd", self._person(number, address))

    def _modify(self, program: str, text: str) -> None:
        url = f"ldap://127.0.0.1:{self.port}/"
        argv = [binary(program), "-x", "-H", url, "-D", f"cn=admin,{BASE}", "-w", "admin"]
        subprocess.run(argv, input=text.encode(), check=True, capture_output=True, timeout=60)

    @property
    def log(self) -> str:
        return self._process.log

    def count(self, word: str) -> int:
        """How often the log has this word (``SRCH base``, ``ACCEPT from``, ``BIND dn``)."""
        return self.log.count(word)

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)


class Babbler:
    """A TCP server that answers everything with the same octets, or with one of them now and then (`every` seconds)."""

    def __init__(self, answer: bytes, *, every: float = 0.0, port: int = 0, address: str = "127.0.0.1") -> None:
        self.port = port or free_port(address)
        self._answer = answer
        self._every = every
        self._done = threading.Event()
        self.connections = 0
        self._listener = socket.create_server((address, self.port), backlog=100)
        self._listener.settimeout(0.1)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._done.is_set():
            try:
                link, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            thread = threading.Thread(target=self._babble, args=(link,))
            self._threads.append(thread)
            thread.start()

    def _babble(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            link.settimeout(0.1)
            if not self._every:
                link.sendall(self._answer)
            for octet in self._answer * 100 if self._every else b"":
                if self._done.wait(self._every):
                    return
                link.sendall(bytes([octet]))
            while not self._done.is_set():
                with contextlib.suppress(TimeoutError):
                    if not link.recv(4096):
                        return

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()


def password_file(directory: Path, password: str = PASSWORD) -> str:
    """A file with the reader's password."""
    path = directory / "ldap.secret"
    path.write_text(password + "\n")
    path.chmod(0o600)
    return str(path)
