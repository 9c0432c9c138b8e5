"""Whether files that a configuration is made of have changed: for reloads that nobody asks for.

Files are asked for by their names, through links, each time anew: Kubernetes changes a ConfigMap or a Secret by turning
one link, and a watch on the file itself would never hear of it.

*Fails by*: nothing. A file that cannot be read is a change like any other, and the reload says what is wrong.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import Final

from gateway.config import Config

_POLICIES: Final = 1000
"""So many files of a policy folder are looked at."""

Trace = tuple[int, ...] | None
"""What tells one file from another under the same name; None when there is none."""


class Watch:
    """What the files were like when they were last looked at. `now` is in seconds, of a clock that never goes back."""

    def __init__(self, config: Config, now: float) -> None:
        self._seen = {path: _trace(path) for path in files(config)}
        self._last = now

    def changed(self, config: Config, now: float) -> bool:
        """Whether it is time for a look, and something has changed since the last one."""
        every = config.reload.watch
        if not every or now < self._last + every:
            return False
        self._last = now
        return self.look(config)

    def look(self, config: Config) -> bool:
        """Whether something has changed since the last look."""
        before, self._seen = self._seen, {path: _trace(path) for path in files(config)}
        return before != self._seen

    def adopt(self, config: Config) -> None:
        """This configuration is in force now: files that it names for the first time are no change."""
        self._seen = {path: self._seen[path] if path in self._seen else _trace(path) for path in files(config)}


def files(config: Config) -> list[str]:
    """The file itself, certificates, keys and CAs of the listeners, and the policy folder with what is in it."""
    found = [config.file]
    found += [path for one in config.listeners if one.tls for path in one.tls.files]
    if config.policy_folder:
        found.append(config.policy_folder)
        try:
            with os.scandir(config.policy_folder) as entries:
                found += sorted(entry.path for entry in islice(entries, _POLICIES) if entry.name.endswith(".py"))
        except OSError:
            # The folder itself has no trace then, which is the change.
            pass
    return found


def _trace(path: str) -> Trace:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if os.path.isdir(path):
        # A directory's own time changes with every file beside the policies, such as a compiled one.
        return (status.st_dev, status.st_ino)
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
