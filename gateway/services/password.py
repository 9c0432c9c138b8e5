"""The password of a store that is asked over the network, where the configuration says that it is."""

from __future__ import annotations

import os
from typing import Final

PASSWORD_OCTETS: Final = 4096


def read_password(variable: str, path: str) -> str:
    """The password as it is now: of the environment variable, if that is set, or the first line of the file.

    Empty where neither is named. Raises OSError, and ValueError when neither has one or for a file that cannot be used.
    """
    if variable and (value := os.environ.get(variable)):
        return value
    if not path:
        if variable:
            raise ValueError(f"the environment variable {variable} is not set")
        return ""
    with open(path, "rb") as file:
        line = file.readline(PASSWORD_OCTETS + 1).strip(b"\r\n")
    if not line:
        raise ValueError("the first line is empty; it must hold the password")
    if len(line) > PASSWORD_OCTETS:
        raise ValueError(f"the first line is longer than {PASSWORD_OCTETS} octets")
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise ValueError("the first line is not UTF-8") from None
