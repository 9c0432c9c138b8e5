"""By what other gateways know a spool, and who hands its mail over: files beside the shards.

*Fails by*: `SpoolError`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from gateway.spool.draft import sync_directory
from gateway.spool.spool import SpoolError, SpoolOptions

NAME: Final = "spool.id"
LOCK: Final = "evacuation.lock"
_SPOOL_ID: Final = re.compile(r"[0-9a-f]{32}\Z")
_TRIES: Final = 20
_TRY_SECONDS: Final = 0.05


def spool_id(root: Path) -> str:
    """The id of a spool, by which others know it wherever it is served from. Made if need be. Raises `SpoolError`."""
    path = root / NAME
    try:
        if not path.exists():
            draft = root / f"{NAME}.{os.getpid()}.new"
            with open(draft, "w", encoding="ascii") as file:
                file.write(uuid.uuid4().hex + "\n")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                # Whoever is first has named it.
                os.link(draft, path)
            os.unlink(draft)
            sync_directory(str(root))
        found = path.read_text("ascii", "replace")[:100].strip()
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror}") from error
    if not _SPOOL_ID.match(found):
        raise SpoolError(f"{path} holds no id; remove it if no message of this spool is leaving or was taken over")
    return found


@contextmanager
def evacuating(root: Path, *, patient: bool = True, closed: bool = True) -> Iterator[bool]:
    """Be the only one who hands messages of this spool over; False when somebody else does. Raises `SpoolError`.

    `patient` blocks for up to a second. `closed` has others told that the spool takes no mail over meanwhile.
    """
    try:
        lock = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SpoolError(f"{root / LOCK}: {error.strerror}") from error
    try:
        alone = _lock(lock, _TRIES if patient else 1)
        if alone:
            os.ftruncate(lock, int(closed))
        yield alone
    finally:
        os.close(lock)


def _lock(lock: int, tries: int) -> bool:
    for left in reversed(range(tries)):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if left:
            # Who looks whether somebody has it may have it for a moment.
            time.sleep(_TRY_SECONDS)  # noqa: TID251 - whoever evacuates does nothing else yet
    return False


def is_evacuated(root: Path) -> bool:
    """Whether somebody hands messages of this spool over just now, so that it takes none."""
    try:
        lock = os.open(root / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.fstat(lock).st_size > 0
    finally:
        os.close(lock)
    return False


def has_room(options: SpoolOptions) -> bool:
    """Whether there is more free than is to be kept free. What cannot be asked has none."""
    try:
        return shutil.disk_usage(options.path).free > options.min_free
    except OSError:
        return False
