"""docs/plugin-guide.md, from its first command to its last, as its readers would go through it.

All is real: the package is made and installed, its tests run, the gateway takes mail. Only what belongs to the machine
is put in place: ports that are free, and, since tests ask no nameserver but their own, one that knows nobody.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guide import Command, File, GuideError, fits, read
from tests.support.process import alive, free_port, wait_until
from tests.support.scripted_dns import ScriptedDns
from tests.support.workshop import ROOT, Workshop

PAGE = ROOT / "docs/plugin-guide.md"


class Reader:
    """Does what the page says, in a folder of its own."""

    def __init__(self, workshop: Workshop, home: Path, nameserver: str) -> None:
        self._workshop = workshop
        self._folder = home
        self._where = home / ".folder"
        self._put = {f"127.0.0.1:{port}": f"127.0.0.1:{free_port()}" for port in (2525, 9925)}
        self._dns = f'dns: {{nameservers: ["{nameserver}"]}}\n'

    def write(self, file: File) -> None:
        path = self._folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # At the end, so that lines keep their numbers.
        path.write_text(self._here(file.text) + (self._dns if file.path == "gatepost.yaml" else ""))

    def run(self, command: Command) -> None:
        script = self._here(command.script) + f'pwd > "{self._where}"\n'
        # To a file: a gateway that is left running keeps a pipe open.
        with (self._where.parent / ".output").open("w+") as output:
            ended = subprocess.run(
                ["bash", "-euc", script],
                cwd=self._folder,
                env=self._workshop.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=180,
                check=False,
            )
            output.seek(0)
            said = output.read()
        where = f"docs/plugin-guide.md:{command.line}"
        assert ended.returncode == 0, f"{where}: exit status {ended.returncode}\n{command.script}\n{said}"
        if command.output is not None:
            wanted = self._here(command.output)
            assert fits(wanted, said), f"{where} shows\n{wanted}\nand it prints\n{said}"
        self._folder = Path(self._where.read_text().strip())

    def _here(self, text: str) -> str:
        for theirs, ours in self._put.items():
            text = text.replace(theirs, ours)
        return text


@pytest.fixture
def reader(workshop: Workshop, tmp_path: Path) -> Iterator[Reader]:
    dns = ScriptedDns()
    try:
        yield Reader(workshop, tmp_path, dns.address)
    finally:
        for file in tmp_path.glob("*/gatepost.pid"):
            pid = int(file.read_text())
            if alive(pid):
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda pid=pid: not alive(pid), "the guide's gateway has ended")
        dns.stop()


@pytest.mark.slow
@pytest.mark.first
def test_the_guide_works_from_its_first_command_to_its_last(reader):
    steps = read(PAGE)
    assert sum(isinstance(step, Command) for step in steps) >= 15 and sum(isinstance(s, File) for s in steps) >= 7
    for step in steps:
        if isinstance(step, File):
            reader.write(step)
        else:
            reader.run(step)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("a", "a\n"),
        ("a…c\n", "abbc\n"),
        ("a\n…\nc", "a\nb\nb\nc\n"),
        ("a\n…\nc", "a\nc\n"),
        ("│ x", "│ x   \n"),
        ("(a) … [b]", "(a) 7 [b]"),
    ],
)
def test_an_output_fits_what_the_page_shows(wanted, said):
    assert fits(wanted, said)


@pytest.mark.parametrize(
    ("wanted", "said"), [("a", "ab"), ("a…c", "a\nc"), ("a\n…\nc", "a\nb\n"), ("a.c", "abc"), ("a", ""), ("a\nb", "a")]
)
def test_another_output_does_not(wanted, said):
    assert not fits(wanted, said)


@pytest.mark.parametrize(
    "text", ["```python\nx = 1\n```\n", "```\nplain\n```\n", "```text\nout of nowhere\n```\n", "```yaml\na: 1\n```\n"]
)
def test_a_block_that_nothing_is_done_with_is_no_part_of_a_guide(tmp_path, text):
    page = tmp_path / "guide.md"
    page.write_text(text)
    with pytest.raises(GuideError, match=r"guide\.md:1"):
        read(page)


def test_every_link_of_the_guide_and_of_its_neighbours_leads_somewhere():
    def anchors(page: Path) -> set[str]:
        titles = re.findall(r"(?m)^#+ (.*)$", page.read_text())
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    lost = []
    for name in ("plugin-guide.md", "plugins.md", "stability.md"):
        page = ROOT / "docs" / name
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith("https:"):
                continue
            path, _, anchor = target.partition("#")
            to = (page.parent / path).resolve() if path else page
            if not to.exists() or (anchor and anchor not in anchors(to)):
                lost.append(f"{name}: {target}")
    assert lost == []
