"""Files that change while a plugin runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from gateway.sdk.fakes import ManualClock
from gateway.sdk.files import CHECK_SECONDS, FileContent, WatchedFile, read_file


def words(data: bytes) -> tuple[str, ...]:
    if b"!" in data:
        raise ValueError("line 1: no exclamations")
    return tuple(data.decode().split())


def put(path: Path, text: str) -> None:
    """As an operator should: a new file, renamed."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def test_what_was_read_elsewhere_is_not_read_again_until_it_changes(tmp_path):
    path = tmp_path / "list"
    put(path, "anna ben")
    parsed = []

    def parse(data: bytes) -> tuple[str, ...]:
        parsed.append(data)
        return words(data)

    async def check() -> None:
        clock = ManualClock()
        watched = WatchedFile(str(path), parse, clock, read=read_file(str(path), words))
        assert await watched.current() == ("anna", "ben")
        assert parsed == []
        put(path, "carl")
        assert await watched.current() == ("anna", "ben"), "it was looked at just now"
        clock.advance(CHECK_SECONDS)
        assert await watched.current() == ("carl",)
        assert len(parsed) == 1

    asyncio.run(check())


@pytest.mark.parametrize("broken", ["nonsense!", None])
def test_a_broken_new_file_keeps_the_old_content_and_a_mended_one_replaces_it(tmp_path, broken):
    path = tmp_path / "list"
    put(path, "anna")

    async def check() -> None:
        clock = ManualClock()
        watched = WatchedFile(str(path), words, clock, read=read_file(str(path), words))
        if broken is None:
            path.unlink()
        else:
            put(path, broken)
        for _ in range(2):
            clock.advance(CHECK_SECONDS)
            assert await watched.current() == ("anna",)
        put(path, "ben")
        clock.advance(CHECK_SECONDS)
        assert await watched.current() == ("ben",)

    asyncio.run(check())


def test_a_file_over_the_limit_is_refused(tmp_path):
    path = tmp_path / "list"
    put(path, "x" * 100)
    with pytest.raises(ValueError, match="larger than 99 octets"):
        read_file(str(path), words, limit=99)
    assert isinstance(read_file(str(path), words, limit=100), FileContent)


def test_a_file_that_was_neither_read_nor_started_has_no_content(tmp_path):
    path = tmp_path / "list"
    put(path, "!")
    watched = WatchedFile(str(path), words, ManualClock())
    with pytest.raises(RuntimeError, match="was not started"):
        asyncio.run(watched.current())
    with pytest.raises(ValueError, match="no exclamations"):
        asyncio.run(watched.start())
