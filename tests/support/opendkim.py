"""OpenDKIM as a milter: one that signs and one that verifies, without DNS of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.support.dkimkeys import KeyPair
from tests.support.process import Process, binary, free_port, listens, new_directory


class OpenDkim:
    """One opendkim in the foreground on a port of its own; `milter` is what Postfix calls it."""

    def __init__(self, settings: Mapping[str, str], *, home: Path | None = None) -> None:
        self.port = free_port()
        self.home = home or new_directory("opendkim")
        config = self.home / "opendkim.conf"
        values = {
            "Socket": f"inet:{self.port}@127.0.0.1",
            "UserID": "opendkim",
            "Background": "no",
            "Syslog": "no",
            "RequireSafeKeys": "no",
            **settings,
        }
        config.write_text("".join(f"{name}\t{value}\n" for name, value in values.items()))
        self._process = Process([binary("opendkim"), "-f", "-x", str(config)], self.home / "log")
        self._process.wait_ready(lambda: listens(self.port))

    @classmethod
    def signer(cls, domain: str, selector: str, key: KeyPair, canonicalization: str = "relaxed/relaxed") -> OpenDkim:
        """Signs what comes from this machine in the name of `domain`."""
        home = new_directory("opendkim")
        path = home / "key"
        key.write(path)
        shutil.chown(path, "opendkim")
        settings = {
            "Mode": "s",
            "Domain": domain,
            "Selector": selector,
            "KeyFile": str(path),
            "InternalHosts": "127.0.0.0/8",
            "Canonicalization": canonicalization,
            "OversignHeaders": "From",
        }
        return cls(settings, home=home)

    @classmethod
    def verifier(cls, keys: Mapping[str, str], authserv_id: str) -> OpenDkim:
        """Adds Authentication-Results; `keys` are key records by name."""
        home = new_directory("opendkim")
        (home / "keys").write_text("".join(f"{name} {record}\n" for name, record in keys.items()))
        (home / "nobody").write_text("192.0.2.254\n")
        settings = {
            "Mode": "v",
            "AuthservID": authserv_id,
            "AlwaysAddARHeader": "yes",
            "InternalHosts": str(home / "nobody"),
            "ExternalIgnoreList": str(home / "nobody"),
            "TestDNSData": str(home / "keys"),
        }
        return cls(settings, home=home)

    @property
    def milter(self) -> str:
        return f"inet:127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._process.log

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)
