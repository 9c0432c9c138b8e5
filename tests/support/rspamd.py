"""rspamd without its stock configuration: a few rules by subject, and nothing that asks the network.

It listens for HTTP (`port`, and the unix socket `socket`), for its controller, and as a milter (`milter_port`).
"""

from __future__ import annotations

import http.client
import os
import shutil
from collections.abc import Mapping

from tests.support.process import Process, binary, free_port, new_directory
from tests.support.scanner import Scanner

# In two pieces, so that no filter finds it here.
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-" + b"UBE-TEST-EMAIL*C.34X"

WORDS: Mapping[str, float] = {"five-points": 5.0, "six-points": 6.0, "eight-points": 8.0, "twenty-points": 20.0}
"""Words of a subject that score so much. Actions: greylist from 4, add header from 6, rewrite subject 8, reject 15."""

_RULES = """\
dofile("/usr/share/rspamd/rules/rspamd.lua")
rspamd_config:register_symbol({
  name = "SEEN_CLIENT",
  score = 0.0,
  callback = function(task)
    local seen = { task:get_ip():to_string(), task:get_helo() or "" }
    for _, recipient in ipairs(task:get_recipients("smtp") or {}) do
      table.insert(seen, recipient.addr)
    end
    return true, 1.0, seen
  end,
})
"""

_CONFIG = """\
lua = "{home}/rules.lua"
options {{
  pidfile = "{home}/pid";
  filters = "regexp";
  disable_hyperscan = true;
  dns {{ nameserver = ["127.0.0.1:{dns}"]; timeout = 1s; retransmits = 1; }}
}}
logging {{ type = "console"; level = "notice"; }}
metric {{
  name = "default";
  actions {{ reject = 15; "rewrite subject" = 8; "add header" = 6; greylist = 4; }}
  subject = "[spam] %s";
{symbols}
}}
regexp {{
{rules}
}}
modules {{ path = "/usr/share/rspamd/plugins/milter_headers.lua"; }}
milter_headers {{ {milter_headers} skip_local = false; }}
worker "normal" {{ bind_socket = "127.0.0.1:{port}"; bind_socket = "{socket} mode=0666"; count = 1; {normal} }}
worker "controller" {{ bind_socket = "127.0.0.1:{controller_port}"; count = 1; {controller} }}
worker "rspamd_proxy" {{
  bind_socket = "127.0.0.1:{milter}";
  milter = yes;
  count = 1;
  upstream "local" {{ default = yes; self_scan = yes; }}
}}
{more}
"""


class Rspamd(Scanner):
    """One rspamd. `more` ends its configuration; `normal` and `controller` are for those HTTP workers.

    The symbol SEEN_CLIENT is in every result, with the client's address, HELO name and the recipients as options.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        milter_headers: str = 'use = ["x-spam-status", "x-spam-level"]; remove_upstream_spam_flag = true;',
        normal: str = "",
        controller: str = 'secure_ip = ["127.0.0.1"];',
        more: str = "",
    ) -> None:
        self.port = port or free_port()
        self.milter_port, self.controller_port = free_port(), free_port()
        self.home = new_directory("rspamd")
        self.socket = self.home / "run" / "socket"
        owner = "_rspamd" if os.getuid() == 0 else ""
        for name in ("db", "run", "log"):
            (self.home / name).mkdir()
            if owner:
                shutil.chown(self.home / name, owner)
        names = {word: word.upper().replace("-", "_") for word in WORDS}
        symbols = [f'  symbol {{ name = "{names[word]}"; score = {score}; }}' for word, score in WORDS.items()]
        rules = [f'  "{name}" = "Subject=/{word}/Hi";' for word, name in names.items()]
        (self.home / "rules.lua").write_text(_RULES)
        config = self.home / "rspamd.conf"
        config.write_text(
            _CONFIG.format(
                home=self.home,
                dns=free_port(),
                symbols="\n".join(symbols),
                rules="\n".join(rules),
                milter_headers=milter_headers,
                port=self.port,
                socket=self.socket,
                controller=controller,
                controller_port=self.controller_port,
                milter=self.milter_port,
                normal=normal,
                more=more,
            )
        )
        self._argv = [binary("rspamd"), "-f", "-c", str(config)]
        self._argv += [f"--var={name}DIR={self.home}/{name.lower()}" for name in ("DB", "RUN", "LOG")]
        self._argv += ["-u", "_rspamd", "-g", "_rspamd"] if owner else ["-i"]
        self.start()

    def start(self) -> None:
        """Start it (again), on the same ports."""
        self._process = Process(self._argv, self.home / "output")
        self._process.wait_ready(lambda: all(self._answers(port) for port in (self.controller_port, self.port)))

    @staticmethod
    def _answers(port: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().read().strip() == b"pong"
        except http.client.HTTPException:
            return False
        finally:
            connection.close()

    @property
    def milter(self) -> str:
        """What Postfix calls its milter."""
        return f"inet:127.0.0.1:{self.milter_port}"
