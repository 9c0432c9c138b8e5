"""A smarthost: Postfix that lets in who logs in over TLS, by Dovecot, and keeps what it takes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.postfix import Postfix
from tests.support.process import Process, banner, binary, free_port, new_directory
from tests.support.servers import Certificate

USER, PASSWORD = "gate@example.test", "sw0rdfish, with spaces"

_DOVECOT = """\
base_dir = {home}/run
state_dir = {home}/lib
log_path = {home}/log
protocols =
listen = 127.0.0.1
ssl = no
auth_mechanisms = plain login cram-md5 scram-sha-256
auth_failure_delay = 0
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {home}/users
}}
userdb {{
  driver = static
  args = uid=65534 gid=65534 home=/nonexistent
}}
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  inet_listener sasl {{
    port = {port}
  }}
}}
"""


class Smarthost:
    """Anybody may send by it who has logged in, and nobody else."""

    def __init__(self, certificate: Certificate) -> None:
        self.home = new_directory("sasl")
        sasl = free_port()
        (self.home / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}::::::\n")
        config = self.home / "dovecot.conf"
        config.write_text(_DOVECOT.format(home=self.home, port=sasl))
        self._config, self._sasl = config, sasl
        self._start_logins()
        try:
            self.postfix = Postfix.store(
                "store.test",
                ["anna"],
                # A process that has served somebody keeps its connection to Dovecot.
                max_use="1",
                smtpd_tls_security_level="may",
                smtpd_tls_cert_file=str(certificate.certificate),
                smtpd_tls_key_file=str(certificate.key),
                smtpd_tls_auth_only="yes",
                smtpd_sasl_auth_enable="yes",
                smtpd_sasl_type="dovecot",
                smtpd_sasl_path=f"inet:127.0.0.1:{sasl}",
                smtpd_sasl_authenticated_header="yes",
                smtpd_recipient_restrictions="permit_sasl_authenticated, reject",
            )
        except BaseException:
            self._dovecot.stop()
            raise
        self.port = self.postfix.port

    def _start_logins(self) -> None:
        self._dovecot = Process([binary("dovecot"), "-F", "-c", str(self._config)], self.home / "output")
        self._dovecot.wait_ready(lambda: banner(self._sasl, b"VERSION"))

    @contextlib.contextmanager
    def without_logins(self) -> Iterator[None]:
        """Dovecot is down inside the block."""
        self._dovecot.stop()
        try:
            yield
        finally:
            self._start_logins()

    def stop(self) -> None:
        self.postfix.stop()
        self._dovecot.stop()
        shutil.rmtree(self.home, ignore_errors=True)


def password_file(directory: Path, password: str = PASSWORD) -> str:
    """A file with the password in its first line."""
    path = directory / "password"
    path.write_text(password + "\n")
    return str(path)
