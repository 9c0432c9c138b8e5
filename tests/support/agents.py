"""Real delivery agents for the pipe transport: procmail, maildrop and dovecot-lda, run as user ``mail``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.support.process import binary

USER = "mail"


class Agent:
    """A home with a folder that belongs to the agent, below a directory that it can walk to but not write into."""

    command: list[str]
    options: dict[str, Any] = {}

    def __init__(self, directory: Path) -> None:
        self.home = directory / type(self).__name__.lower()
        self.mail = self.home / "mail"
        self.mail.mkdir(parents=True)
        shutil.chown(self.mail, USER, "mail")

    @property
    def transport(self) -> dict[str, Any]:
        """An entry of `transports`."""
        return {"pipe": {"command": self.command, "user": USER, **self.options}}

    def _file(self, name: str, text: str) -> str:
        path = self.home / name
        path.write_text(text)
        path.chmod(0o600)
        shutil.chown(path, USER, "mail")
        return str(path)


class Procmail(Agent):
    """Into an mbox per recipient; it does not know ``unknown``, and may not write the mailbox of ``full``."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        rules = self._file(
            "rc",
            f"""SHELL=/bin/sh
LOCKSLEEP=1
WHO=$1
DEFAULT={self.mail}/$WHO
:0
* WHO ?? ^^unknown^^
{{
  EXITCODE=67
  HOST
}}
:0
* WHO ?? ^^full^^
{{
  DEFAULT={self.home}/full
  ORGMAIL={self.home}/full
}}
""",
        )
        # With -m it is a filter for mail of any address, and leaves the first line to whoever calls it.
        self.command = [binary("procmail"), "-t", "-m", rules, "{local}"]
        self.options = {"from_line": True, "environment": {"HOME": str(self.mail)}}


class Maildrop(Agent):
    """Into the Maildir of ``anna``; it does not know ``unknown``."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        rules = self._file(
            "filter",
            f"""if ( "$1" eq "unknown" )
{{
  echo "no such user here"
  EXITCODE=67
  exit
}}
to "{self.mail}/$1"
""",
        )
        subprocess.run([binary("maildirmake.maildrop"), str(self.mail / "anna")], check=True)
        for path in [self.mail / "anna", *(self.mail / "anna").iterdir()]:
            shutil.chown(path, USER, "mail")
        self.command = [binary("maildrop"), rules, "{local}"]
        self.options = {"environment": {"HOME": str(self.mail)}}


class DovecotLda(Agent):
    """Into a Maildir per recipient, with a quota of 20 KiB. With `tempfail`, a full one is temporary."""

    def __init__(self, directory: Path, *, tempfail: bool = False) -> None:
        super().__init__(directory)
        run = self.home / "run"
        run.mkdir()
        config = self._file(
            "dovecot.conf",
            f"""base_dir = {run}
log_path = {self.mail}/log
protocols =
ssl = no
mail_location = maildir:{self.mail}/%n
mail_uid = {USER}
mail_gid = mail
first_valid_uid = 1
first_valid_gid = 1
mail_plugins = quota
quota_full_tempfail = {"yes" if tempfail else "no"}
postmaster_address = postmaster@example.test
hostname = mx.test
plugin {{
  quota = maildir:User quota
  quota_rule = *:storage=20K
}}
""",
        )
        lda = "/usr/lib/dovecot/dovecot-lda"
        self.command = [lda, "-c", config, "-e", "-f", "{sender}", "-a", "{recipient}"]
        # It looks nobody up, but takes the user whose environment it has.
        self.options = {"environment": {"HOME": str(self.mail), "USER": "anna"}}
