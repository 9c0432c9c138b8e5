"""Publishes a version: its image and its signed chart, in a registry: ``make publish ARGS="--registry HOST/PATH ..."``.

The image is built from this tree, or the one of ``--image`` is taken. The chart that is published names it, is signed
with the key of ``--sign-key``, and goes to HOST/PATH/charts. In ``--output`` is then what a release page shows: the
chart, its signature, the public key, and what the image consists of as a CycloneDX document. A version that is there
already is not replaced. Logging in is left to ``podman login`` and ``helm registry login``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import yaml

ROOT: Final = Path(__file__).parents[1]
CHART: Final = ROOT / "helm/gatepost"
TOOLS: Final = ROOT / ".venv/tools"


class Failed(click.ClickException):
    """A step that could not be done, and why."""


@dataclass(frozen=True)
class Registry:
    """Where image and chart go: ``HOST[:PORT]/PATH``. By plain HTTP only for one on this machine."""

    host: str
    path: str
    plain: bool = False

    @classmethod
    def parsed(cls, text: str, *, plain: bool) -> Registry:
        found = re.fullmatch(r"([a-z0-9.-]+(?::[0-9]{1,5})?)/([a-z0-9._-]+(?:/[a-z0-9._-]+)*)", text)
        if not found:
            raise Failed(f"--registry {text} is not HOST/PATH, such as registry.example.org/mail")
        return cls(found[1], found[2], plain)

    @property
    def image(self) -> str:
        return f"{self.host}/{self.path}/gatepost"

    @property
    def charts(self) -> str:
        return f"oci://{self.host}/{self.path}/charts"


@dataclass(frozen=True)
class Key:
    """Who signs. Helm reads key rings of GnuPG's older form, so the keys are exported to a file each."""

    name: str
    secret: Path
    public: Path
    passphrase: Path | None

    @classmethod
    @contextmanager
    def exported(cls, name: str, passphrase: Path | None) -> Iterator[Key]:
        """The key of this name from the user's key ring. What is secret is gone at the end."""
        options = ["--pinentry-mode", "loopback", "--passphrase-file", str(passphrase)] if passphrase else []
        with tempfile.TemporaryDirectory(prefix="gatepost-keys-") as directory:
            key = cls(name, Path(directory, "secret.gpg"), Path(directory, "public.gpg"), passphrase)
            run("gpg", "--batch", *options, "--output", str(key.secret), "--export-secret-keys", name)
            run("gpg", "--batch", "--output", str(key.public), "--export", name)
            for file in (key.secret, key.public):
                # It says nothing of a key that it does not have.
                if not file.exists():
                    raise Failed(f"the key ring has no secret key of {name}; gpg --list-secret-keys shows what it has")
            yield key


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """Run a program; gives what it prints, and fails with what it says."""
    try:
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ, **(environment or {})}
        )
    except FileNotFoundError:
        raise Failed(f"{command[0]} is not there; tools/setup.sh full installs it") from None
    if ran.returncode != 0:
        raise Failed(f"{Path(command[0]).name} {command[1]} failed:\n{ran.stdout}{ran.stderr}".rstrip())
    return ran.stdout


def helm(*arguments: str, major: int = 4) -> str:
    return run(str(TOOLS / f"helm{major}"), *arguments)


# --- the chart --------------------------------------------------------------------------------------------------------


def name_image(chart: Path, registry: Registry, digest: str) -> None:
    """Have the chart name the image that was published with it.

    The digest is an annotation and no value: as a value it would go before the tag of whoever takes another image.
    """
    repository = f"{registry.path}/gatepost"
    _change(
        chart / "values.yaml",
        ('  registry: ""\n  repository: gatepost\n', f"  registry: {registry.host}\n  repository: {repository}\n"),
    )
    _change(
        chart / "README.md",
        ('| `image.registry` | `""` |', f'| `image.registry` | `"{registry.host}"` |'),
        ('| `image.repository` | `"gatepost"` |', f'| `image.repository` | `"{repository}"` |'),
    )
    version = str(described(chart)["appVersion"])
    _change(
        chart / "Chart.yaml",
        (
            "  # Whoever installs the chart builds the image (Containerfile), so there is none to look into.\n"
            "  artifacthub.io/images: |\n"
            f"    - name: gatepost\n      image: gatepost:{version}\n      whitelisted: true\n",
            f"  artifacthub.io/images: |\n    - name: gatepost\n      image: {registry.image}:{version}@{digest}\n",
        ),
    )


def _change(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for before, after in changes:
        if text.count(before) != 1:
            raise Failed(f"{file.name} has this not once, so it cannot be changed:\n{before}")
        text = text.replace(before, after)
    file.write_text(text)


def described(chart: Path) -> dict[str, object]:
    """What Chart.yaml says."""
    said: dict[str, object] = yaml.safe_load((chart / "Chart.yaml").read_text())
    return said


def pack(chart: Path, directory: Path, key: Key | None) -> Path:
    """Pack a chart, and sign it; Helm must then find the signature good."""
    directory.mkdir(parents=True, exist_ok=True)
    options = []
    if key is not None:
        options = ["--sign", "--key", key.name, "--keyring", str(key.secret)]
        options += ["--passphrase-file", str(key.passphrase)] if key.passphrase else []
    # Helm 3 knows no keys of elliptic curves. Whoever has it must be able to verify, so it is the one that signs.
    helm("package", str(chart), "--destination", str(directory), *options, major=3)
    said = described(chart)
    package = directory / f"{said['name']}-{said['version']}.tgz"
    if key is not None:
        for major in (3, 4):
            helm("verify", str(package), "--keyring", str(key.public), major=major)
    return package


def is_published(registry: Registry, version: str) -> bool:
    plain = ["--plain-http"] if registry.plain else []
    try:
        helm("show", "chart", f"{registry.charts}/gatepost", "--version", version, *plain)
    except Failed as failed:
        if "not found" in str(failed):
            return False
        raise
    return True


# --- the image --------------------------------------------------------------------------------------------------------


def build_image() -> str:
    """Build it as ``make image`` does; gives its id."""
    with tempfile.NamedTemporaryFile("r") as identity:
        run(str(ROOT / "tools/image.sh"), "--iidfile", identity.name)
        return identity.read().strip()


def push_image(image: str, registry: Registry, version: str) -> str:
    """Push an image; gives its digest in the registry."""
    with tempfile.NamedTemporaryFile("r") as digest:
        options = [f"--tls-verify={str(not registry.plain).lower()}", "--digestfile", digest.name]
        run("podman", "push", "-q", *options, image, f"docker://{registry.image}:{version}")
        return digest.read().strip()


def write_contents(image: str, file: Path) -> None:
    """Write what Gatepost's part of an image consists of, as CycloneDX JSON: its Python packages, and libmilter.

    What the base image has is for its makers to say.
    """
    root = Path(run("podman", "image", "mount", image).strip())
    try:
        (packages,) = root.glob("opt/gatepost/lib/python3.*/site-packages")
        (native,) = root.glob("opt/gatepost/lib/native/libmilter.so.*")
        with tempfile.TemporaryDirectory() as directory:
            # It asks an interpreter where packages are; the image's own cannot be run from here.
            python = Path(directory, "python")
            python.write_text(f"#!/bin/sh\necho '{json.dumps([str(packages)])}'\n")
            python.chmod(0o755)
            options = ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "--no-validate"]
            listed = run(
                sys.executable, "-m", "cyclonedx_py", "environment", *options, str(python),
                environment={"PYTHONPATH": str(TOOLS / "contents")},
            )  # fmt: skip
        document = json.loads(listed)
        document["components"].append(
            {
                "type": "library",
                "name": "libmilter",
                "version": native.name.partition(".so.")[2],
                "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(native.read_bytes()).hexdigest()}],
            }
        )
        file.write_text(json.dumps(document, indent=2) + "\n")
    finally:
        run("podman", "image", "unmount", image)


# --- the whole --------------------------------------------------------------------------------------------------------


def publish(registry: Registry, image: str | None, key: Key | None, output: Path) -> None:
    version = str(described(CHART)["version"])
    if is_published(registry, version):
        raise Failed(
            f"{registry.charts}/gatepost has {version} already, and what is published does not change;"
            " give Chart.yaml and pyproject.toml another version"
        )
    with tempfile.TemporaryDirectory(prefix="gatepost-chart-") as directory:
        chart = Path(directory, "gatepost")
        shutil.copytree(CHART, chart)
        # Before anything is anywhere: a key that does not sign.
        pack(chart, Path(directory, "trial"), key)
        image = image or build_image()
        digest = push_image(image, registry, version)
        name_image(chart, registry, digest)
        package = pack(chart, output, key)
    write_contents(image, output / f"gatepost-{version}.cdx.json")
    verify = ""
    if key is not None:
        shutil.copy(key.public, output / "gatepost.gpg")
        verify = " --verify --keyring gatepost.gpg"
    plain = ["--plain-http"] if registry.plain else []
    # Last, since it is what makes the version: a run that failed before may be repeated.
    helm("push", str(package), registry.charts, *plain)
    click.echo(f"{registry.image}:{version}@{digest}")
    click.echo(f"helm install gatepost {registry.charts}/gatepost --version {version}{verify} -n mail -f values.yaml")


@click.command(help=__doc__)
@click.option("--registry", required=True, metavar="HOST/PATH", help="Where image and chart go.")
@click.option("--sign-key", metavar="NAME", help="The key that signs, as gpg names it: RSA, for Helm 3.")
@click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Has the passphrase of that key in its first line.",
)
@click.option("--unsigned", is_flag=True, help="Publish a chart without a signature.")
@click.option("--image", metavar="IMAGE", help="An image that is built already, by its id or name.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "dist", help="Instead of dist/."
)
@click.option("--plain-http", is_flag=True, help="The registry speaks HTTP: one on this machine.")
def main(
    registry: str,
    sign_key: str | None,
    passphrase_file: Path | None,
    unsigned: bool,
    image: str | None,
    output: Path,
    plain_http: bool,
) -> None:
    where = Registry.parsed(registry, plain=plain_http)
    if (sign_key is None) != unsigned:
        raise Failed("give either --sign-key or --unsigned")
    if sign_key is None:
        publish(where, image, None, output)
        return
    with Key.exported(sign_key, passphrase_file) as key:
        publish(where, image, key, output)


if __name__ == "__main__":
    main()
