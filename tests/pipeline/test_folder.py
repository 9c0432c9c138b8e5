"""Policies and plugins in single files: what is taken, what is refused, and where the blame is put."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from gateway.pipeline import folder as module
from gateway.pipeline import loader
from gateway.pipeline.catalog import Catalog
from gateway.pipeline.folder import FolderError, Offer, read_folder

NIGHT = '''
from __future__ import annotations

from dataclasses import dataclass

from gateway.sdk import PROCEED, Finding, Policy, PolicyOptions, Session, Spf, Verdict, reject


@dataclass(frozen=True, slots=True)
class Hour(Finding):
    """The hour of the day."""

    hour: int


class Night(Policy):
    """Refuses at night."""

    name = "night"
    version = "7"

    class Options(PolicyOptions):
        until: int = 6

    def on_mail(self, hour: Hour | None, session: Session) -> Verdict:
        return reject("7.1", "come in the morning") if hour and hour.hour < self.options.until else PROCEED
'''
PLUGIN = """
from dataclasses import dataclass
from gateway.sdk import PROCEED, Finding, Plugin, Policy, Session, Stage, Verdict, finds

@dataclass(frozen=True, slots=True)
class Moon(Finding):
    full: bool

class MoonPolicy(Policy):
    name = "moon"
    def on_mail(self, moon: Moon) -> Verdict:
        return PROCEED

class MoonPlugin(Plugin):
    name = "moon"
    policy = MoonPolicy
    @finds(Stage.CONNECT)
    async def look(self, session: Session) -> Moon:
        return Moon(True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "policies"
    path.mkdir(mode=0o755)
    return path


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    path.chmod(0o644)
    return path


def offered(folder: Path) -> dict[str, Offer]:
    return {offer.name: offer for offer in read_folder(str(folder), {os.geteuid()})}


def refused(folder: Path) -> list[str]:
    with pytest.raises(FolderError) as caught:
        offered(folder)
    return [f"{Path(p.file).name}:{p.line}: {p.message}" for p in caught.value.problems]


def test_a_file_offers_its_policy_by_its_name_with_its_line(folder: Path) -> None:
    file = put(folder, "night.py", NIGHT)
    night = offered(folder)["night"]
    assert (night.file, night.line) == (str(file), 16)
    assert night.thing.version == "7" and set(night.thing.hooks) == {"mail"}


def test_a_plugin_brings_its_default_policy_along_under_one_name(folder: Path) -> None:
    put(folder, "moon.py", PLUGIN)
    assert list(offered(folder)) == ["moon"]
    known = Catalog.installed().with_files(read_folder(str(folder), {os.geteuid()}))
    assert known.plugin("moon") is not None and known.policy("moon") is None


def test_files_that_begin_with_a_mark_and_tests_are_left_alone(folder: Path) -> None:
    put(folder, "night.py", NIGHT)
    for name in ("_draft.py", ".hidden.py", "test_night.py", "night_test.py", "conftest.py", "night.txt", "night.pyc"):
        put(folder, name, "raise RuntimeError('this is never run')")
    assert list(offered(folder)) == ["night"]


def test_nothing_is_added_to_where_python_imports_from_and_no_file_sees_another(folder: Path) -> None:
    put(folder, "night.py", NIGHT)
    put(folder, "other.py", "import night\n")
    before = list(sys.path)
    assert refused(folder) == ["other.py:1: cannot be loaded: ModuleNotFoundError: No module named 'night'"]
    assert sys.path == before and "night" not in sys.modules


def test_a_file_that_did_not_change_is_not_run_again_and_one_that_did_makes_new_classes(folder: Path) -> None:
    put(folder, "night.py", NIGHT)
    first = offered(folder)["night"].thing
    assert offered(folder)["night"].thing is first
    put(folder, "night.py", NIGHT.replace('"7"', '"8"'))
    second = offered(folder)["night"].thing
    assert second is not first and (first.version, second.version) == ("7", "8")
    assert first.hooks["mail"].inputs[0] is not second.hooks["mail"].inputs[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", "f.py:1: no Python: invalid syntax"),
        ("x = '\0'\n", "f.py:1: no Python: "),
        ("x = '\xff'\n", "f.py:1: no Python: "),
        ("import sys\n\nsys.exit(3)\n", "f.py:3: calls sys.exit when it is loaded; a file only defines classes"),
        ("\nraise ValueError('why')\n", "f.py:2: cannot be loaded: ValueError: why"),
        ("def f():\n    return f()\n\nf()\n", "f.py:2: cannot be loaded: RecursionError: "),
        (NIGHT.replace("on_mail", "on_mial"), "f.py:16: cannot be loaded: TypeError: Night.on_mial is no hook; hooks"),
        (NIGHT.replace("hour: Hour", "hour: Huor"), "f.py:16: cannot be loaded: NameError: name 'Huor' is not defined"),
        (NIGHT.replace(" -> Verdict", ""), "f.py:16: cannot be loaded: TypeError: Night.on_mail must be annotated to"),
        (NIGHT.replace('"night"', '"Night!"'), "f.py:16: Night: 'Night!' cannot be the name of an entry"),
        (NIGHT.replace('"night"', '"shadow"'), "f.py:16: Night: 'shadow' cannot be the name of an entry"),
        (NIGHT.replace('"night"', "42"), "f.py:16: Night: 42 cannot be the name of an entry"),
        (NIGHT.replace("    name =", "    nom ="), "f.py:1: offers nothing: "),
        ("from gateway.sdk import Policy\n", "f.py:1: offers nothing: "),
    ],
    ids=range(14),
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(folder: Path, text: str, said: str) -> None:
    (folder / "f.py").write_bytes(text.encode("latin-1"))
    (folder / "f.py").chmod(0o644)
    before = set(sys.modules)
    (problem,) = refused(folder)
    assert problem.startswith(said)
    assert {name for name in set(sys.modules) - before if name.startswith("_gatepost")} <= {
        name for name in module._modules
    }


def test_a_file_that_never_ends_is_stopped_even_if_it_catches_exceptions(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    put(folder, "f.py", "while True:\n    try:\n        pass\n    except Exception:\n        pass\n")
    before = signal.getsignal(signal.SIGALRM)
    (problem,) = refused(folder)
    assert "takes longer than 0.05 s to be loaded" in problem
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_all_files_problems_are_said_at_once(folder: Path) -> None:
    put(folder, "a.py", "1 +\n")
    put(folder, "b.py", "1 / 0\n")
    put(folder, "night.py", NIGHT)
    assert [problem.partition(" ")[0] for problem in refused(folder)] == ["a.py:1:", "b.py:1:"]


def test_a_name_that_two_files_offer_or_that_is_installed_is_refused_where_it_stands(folder: Path) -> None:
    put(folder, "a.py", NIGHT)
    put(folder, "b.py", NIGHT + "\n")
    assert refused(folder) == [f"b.py:16: night is offered by {folder}/a.py:16 too; give one of them another name"]
    (folder / "b.py").unlink()
    put(folder, "a.py", NIGHT.replace('"night"', '"spf"'))
    with pytest.raises(FolderError) as caught:
        Catalog.installed().with_files(read_folder(str(folder), {os.geteuid()}))
    (problem,) = caught.value.problems
    assert (problem.line, problem.message) == (
        16,
        "spf is installed already, from plugins.spf; give this one another name",
    )


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write_to_is_refused_and_not_run(folder: Path, mode: int) -> None:
    path = put(folder, "night.py", "raise RuntimeError('it was run')")
    path.chmod(mode)
    assert refused(folder) == [
        f"night.py:1: others than its owner may write to it (mode {mode:04o}), and what it holds runs in the gateway:"
        f" chmod go-w {path}"
    ]


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(folder: Path, mode: int) -> None:
    put(folder, "night.py", NIGHT)
    folder.chmod(mode)
    assert refused(folder) == [
        f"policies:0: others than its owner may write to it (mode {mode:04o}), and what it holds runs in the gateway:"
        f" chmod go-w {folder}"
    ]


def test_what_belongs_to_somebody_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(folder, "night.py", NIGHT)
    real = os.fstat

    def strange(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        mine = os.readlink(f"/proc/self/fd/{descriptor}") != str(path)
        return status if mine else os.stat_result((*status[:4], 12345, *status[5:]))

    monkeypatch.setattr(os, "fstat", strange)
    (problem,) = refused(folder)
    assert problem.startswith("night.py:1: belongs to user 12345, ") and problem.endswith(f"chown root {path}")
    assert [offer.name for offer in read_folder(str(folder), {os.geteuid(), 12345})] == ["night"]


def test_modes_count_for_nothing_where_nobody_can_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "night.py", NIGHT).chmod(0o666)
    real = os.fstatvfs

    def read_only(descriptor: int) -> os.statvfs_result:
        found = real(descriptor)
        return os.statvfs_result((*found[:8], found.f_flag | os.ST_RDONLY, found[9]))

    monkeypatch.setattr(os, "fstatvfs", read_only)
    assert list(offered(folder)) == ["night"]


def test_what_is_no_file_too_large_or_too_much_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "pipe.py", 0o600)
    (folder / "sub.py").mkdir()
    put(folder, "big.py", "#" * (module.FILE_OCTETS + 1))
    (folder / "gone.py").symlink_to("nowhere")
    assert refused(folder) == [
        "big.py:1: is larger than 1 MiB",
        "gone.py:1: cannot be read: No such file or directory",
        "pipe.py:1: is no plain file",
        "sub.py:1: is no plain file",
    ]
    monkeypatch.setattr(module, "FILES", 3)
    assert refused(folder) == ["policies:0: has more than 3 files"]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone") == ["gone:0: cannot be read: No such file or directory"]
    put(tmp_path, "file", "")
    assert refused(tmp_path / "file") == ["file:0: cannot be read: Not a directory"]


def test_metrics_of_a_file_that_changed_say_that_a_restart_is_needed(folder: Path) -> None:
    text = "from prometheus_client import Counter\nSEEN = Counter('gatepost_folder_test_total', 'x')\n" + NIGHT.replace(
        "from __future__ import annotations\n", ""
    ).replace("Hour | None", "Hour")
    put(folder, "night.py", text)
    assert list(offered(folder)) == ["night"]
    assert list(offered(folder)) == ["night"]
    put(folder, "night.py", text + "\n# changed\n")
    (problem,) = refused(folder)
    assert (
        problem.startswith("night.py:2: DuplicateTimeseries: Duplicated timeseries") and "restart Gatepost" in problem
    )


def test_reserved_names_are_the_keys_of_an_entry() -> None:
    assert {*loader._PLUGIN_KEYS, *loader._POLICY_KEYS, loader.NO_POLICY} == module.RESERVED
