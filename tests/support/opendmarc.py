"""OpenDMARC as a milter behind a Postfix: what it says of a message stands in the Authentication-Results it adds.

It reads nameservers from resolv.conf and cannot be told a port, so it runs in a mount namespace with one of its own.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import publicsuffixlist

from tests.support.clients import connect
from tests.support.postfix import Postfix, SmtpSink
from tests.support.process import Process, binary, free_port, listens, new_directory, wait_until

SUFFIXES = Path(publicsuffixlist.__file__).with_name("public_suffix_list.dat")
BELIEVED = "upstream.test"
"""OpenDMARC takes SPF and DKIM results from Authentication-Results fields of this authserv-id."""


class OpenDmarc:
    """A Postfix that asks OpenDMARC and hands on to a sink."""

    def __init__(self, nameserver: str) -> None:
        self.home = new_directory("opendmarc")
        (self.home / "resolv.conf").write_text(f"nameserver {nameserver}\noptions timeout:2 attempts:1\n")
        # Without a list of its own it would ignore all mail from this machine.
        (self.home / "ignored").write_text("203.0.113.99\n")
        self._port = free_port()
        settings = {
            "AuthservID": "opendmarc.test",
            "TrustedAuthservIDs": BELIEVED,
            "IgnoreHosts": str(self.home / "ignored"),
            "PublicSuffixList": str(SUFFIXES),
            "Socket": f"inet:{self._port}@127.0.0.1",
            "RejectFailures": "false",
            "Background": "false",
            "Syslog": "false",
        }
        config = self.home / "opendmarc.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        private = "-m" if os.geteuid() == 0 else "-rm"
        script = f"mount --bind {self.home}/resolv.conf /etc/resolv.conf && exec {binary('opendmarc')} -f -c {config}"
        self._process = Process([binary("unshare"), private, "sh", "-c", script], self.home / "log")
        self._process.wait_ready(lambda: listens(self._port))
        self._sink = SmtpSink(dump=True)
        milter = f"inet:127.0.0.1:{self._port}"
        self._postfix = Postfix.relay(self._sink.port, smtpd_milters=milter, milter_default_action="tempfail")

    def verdict(self, author: str, sender: str, results: str, number: int) -> tuple[str, str]:
        """Result and published policy for a message of which these SPF and DKIM results are believed."""
        mark = f"X-Number: {number}-"
        content = (
            f"Authentication-Results: {BELIEVED}; {results}\r\nFrom: {author}\r\nTo: ben@elsewhere.test\r\n"
            f"Subject: test\r\nDate: Sun, 01 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{number}@x.test>\r\n"
            f"{mark}\r\n\r\nHello.\r\n"
        )
        with connect(self._postfix.port) as client:
            client.sendmail(sender, ["ben@elsewhere.test"], content.encode())

        def arrived() -> str | None:
            return next((text for text in self._sink.messages() if mark in text and "Hello." in text), None)

        text = wait_until(arrived, f"message {number} came out behind OpenDMARC")
        flat = " ".join(text.split())
        match = re.search(r"Authentication-Results: opendmarc\.test; dmarc=(\w+) \(p=(\w+) dis=\w+\)", flat)
        assert match, text
        return match[1], match[2]

    def stop(self) -> None:
        self._postfix.stop()
        self._sink.stop()
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)
