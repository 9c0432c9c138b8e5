"""The ring of filters around Postfix for the benchmark: Debian's postgrey, policyd-spf, OpenDKIM and OpenDMARC.

All run in the control group whose processor time counts as Postfix's, and read nameservers from resolv.conf.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.bench.zone import CLIENT
from tests.support.opendmarc import SUFFIXES
from tests.support.postfix import Postfix
from tests.support.process import Process, binary, free_port, listens

LISTS = ("one.lists.bench", "two.lists.bench", "three.lists.bench")
DELAY = 1
"""Seconds of greylisting."""


class FilteredPostfix:
    """Postfix and its filters. `settings` are Postfix's own; `enter` puts a process into the control group."""

    def __init__(self, home: Path, settings: Mapping[str, str], enter: Callable[[], None], prefix: str) -> None:
        self._home = home
        self._enter = enter
        self._processes: list[Process] = []
        grey, dkim, dmarc = free_port(), free_port(), free_port()
        (home / "nobody").write_text("203.0.113.99\n")
        self._postgrey(grey)
        self._milter("opendkim", dkim, {"Mode": "v", "AlwaysAddARHeader": "yes", "RequireSafeKeys": "no",
                                        "InternalHosts": f"{home}/nobody", "ExternalIgnoreList": f"{home}/nobody",
                                        "UserID": "opendkim", "Background": "no", "Syslog": "no"})  # fmt: skip
        self._milter("opendmarc", dmarc, {"TrustedAuthservIDs": "postfix.test", "IgnoreHosts": f"{home}/nobody",
                                          "PublicSuffixList": str(SUFFIXES), "RejectFailures": "true",
                                          "Background": "false", "Syslog": "false"})  # fmt: skip
        spf = home / "policyd-spf.conf"
        spf.write_text("debugLevel = 0\nTestOnly = 1\nHELO_reject = Fail\nMail_From_reject = Fail\n")
        lists = ", ".join(f"reject_rbl_client {zone}" for zone in LISTS)
        self.postfix = Postfix(
            {
                "mynetworks": "127.0.0.0/8",
                "inet_interfaces": CLIENT,
                "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
                "smtpd_recipient_restrictions": f"reject_unauth_destination, {lists},"
                f" check_policy_service inet:127.0.0.1:{grey}, check_policy_service unix:private/policyd-spf",
                "policyd-spf_time_limit": "3600",
                "smtpd_milters": f"inet:127.0.0.1:{dkim}, inet:127.0.0.1:{dmarc}",
                "milter_default_action": "tempfail",
                **settings,
            },
            home=home / "postfix",
            prefix=prefix,
            address=CLIENT,
            services=f"policyd-spf unix - n n - 0 spawn user=policyd-spf argv={binary('policyd-spf')} {spf}\n",
        )

    def _start(self, name: str, argv: list[str], port: int) -> None:
        process = Process(argv, self._home / f"{name}.log", cwd=Path("/"), prepare=self._enter)
        process.wait_ready(lambda: listens(port))
        self._processes.append(process)

    def _postgrey(self, port: int) -> None:
        database = self._home / "postgrey"
        database.mkdir()
        shutil.chown(database, "postgrey", "postgrey")
        (self._home / "none").write_text("")
        options = [f"--inet=127.0.0.1:{port}", f"--dbdir={database}", f"--delay={DELAY}"]
        options += [f"--whitelist-{kind}={self._home}/none" for kind in ("clients", "recipients")]
        self._start("postgrey", [binary("postgrey"), *options], port)

    def _milter(self, name: str, port: int, settings: Mapping[str, str]) -> None:
        config = self._home / f"{name}.conf"
        values = {"Socket": f"inet:{port}@127.0.0.1", "AuthservID": "postfix.test", **settings}
        config.write_text("".join(f"{key} {value}\n" for key, value in values.items()))
        # In the foreground; OpenDKIM's -x is its configuration file, OpenDMARC's is -c.
        self._start(name, [binary(name), "-f", "-x" if name == "opendkim" else "-c", str(config)], port)

    def stop(self) -> None:
        self.postfix.stop()
        for process in self._processes:
            process.stop()
