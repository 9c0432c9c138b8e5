"""A key ring of GnuPG's for a test, with a key that has a passphrase."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from tests.support.process import alive, binary, new_directory, wait_until

NAME: Final = "Releases <releases@example.org>"


class KeyRing:
    """A home of gpg's, whose agent ends with it."""

    def __init__(self, algorithm: str = "rsa2048") -> None:
        self.home = new_directory("gnupg")
        self.home.chmod(0o700)
        self.environment: Mapping[str, str] = {"GNUPGHOME": str(self.home)}
        self.passphrase = self.home / "passphrase"
        self.passphrase.write_text("a passphrase\n")
        options = ["--batch", "--pinentry-mode", "loopback", "--passphrase-file", str(self.passphrase)]
        self._ran("gpg", *options, "--quick-generate-key", NAME, algorithm, "sign", "never")

    def exported(self) -> bytes:
        """The public key, as Helm reads it."""
        return self._ran("gpg", "--batch", "--export", NAME)

    def _ran(self, program: str, *arguments: str) -> bytes:
        ran = subprocess.run(
            [binary(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            env={**os.environ, **self.environment},
        )
        assert ran.returncode == 0, ran.stderr.decode()
        return ran.stdout

    def close(self) -> None:
        """End the agent that gpg started, by its own id, and forget the keys."""
        agent = self._ran("gpg-connect-agent", "--no-autostart", "getinfo pid", "/bye").split()
        if agent[:1] == [b"D"]:
            pid = int(agent[1])
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            # It removes its sockets itself.
            wait_until(lambda: not alive(pid), "gpg's agent has ended")
        shutil.rmtree(self.home)
