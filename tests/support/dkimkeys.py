"""DKIM keys made on the fly by OpenSSL, and a signer that writes whatever tags a test wants.

The signer is plain on purpose (regular expressions, the whole message at once): it is another reading of RFC 6376 than
the one that is tested.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import binary


@dataclass(frozen=True)
class KeyPair:
    """A private key in PEM, as OpenSSL writes it, and what goes into p=."""

    pem: bytes
    kind: str
    public: str

    @property
    def record(self) -> str:
        """The key record for the DNS."""
        return f"v=DKIM1; k={self.kind}; p={self.public}"

    @property
    def traditional(self) -> bytes:
        """An RSA key in PKCS #1, as older OpenSSL wrote it."""
        return _openssl("rsa", "-traditional", data=self.pem)

    def sign(self, data: bytes, digest: str = "sha256") -> bytes:
        """RSASSA-PKCS1-v1_5 over `data`, or Ed25519 over its SHA-256 (RFC 8463 section 3)."""
        with tempfile.TemporaryDirectory() as home:
            key, content = Path(home, "key"), Path(home, "data")
            key.write_bytes(self.pem)
            if self.kind == "rsa":
                content.write_bytes(data)
                return _openssl("dgst", f"-{digest}", "-sign", str(key), str(content))
            content.write_bytes(hashlib.sha256(data).digest())
            return _openssl("pkeyutl", "-sign", "-inkey", str(key), "-rawin", "-in", str(content))

    def write(self, path: Path, mode: int = 0o600) -> str:
        """The private key as a file; gives its path."""
        path.write_bytes(self.pem)
        path.chmod(mode)
        return str(path)


def _openssl(*arguments: str, data: bytes | None = None) -> bytes:
    return subprocess.run([binary("openssl"), *arguments], input=data, capture_output=True, check=True).stdout


@functools.cache
def rsa(bits: int = 1024, number: int = 0) -> KeyPair:
    """An RSA key, made once; another `number` is another key."""
    pem = _openssl("genrsa", str(bits))
    der = _openssl("pkey", "-pubout", "-outform", "DER", data=pem)
    return KeyPair(pem, "rsa", base64.b64encode(der).decode())


@functools.cache
def ed25519(number: int = 0) -> KeyPair:
    """An Ed25519 key."""
    pem = _openssl("genpkey", "-algorithm", "ed25519")
    der = _openssl("pkey", "-pubout", "-outform", "DER", data=pem)
    return KeyPair(pem, "ed25519", base64.b64encode(der[-32:]).decode())


def relaxed_header(field: bytes) -> bytes:
    """RFC 6376 section 3.4.2."""
    parts = re.match(rb"([^:]*?)[ \t]*:(.*)\Z", field, re.DOTALL)
    assert parts is not None
    name, value = parts.groups()
    return name.lower() + b":" + re.sub(rb"[ \t]+", b" ", re.sub(rb"\r\n", b"", value)).strip() + b"\r\n"


def canonical_body(body: bytes, form: str) -> bytes:
    """RFC 6376 sections 3.4.3 and 3.4.4, line by line."""
    lines = body.split(b"\r\n")
    if form == "relaxed":
        lines = [re.sub(rb"[ \t]+", b" ", line).rstrip(b" ") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        return b"\r\n" if form == "simple" else b""
    return b"\r\n".join(lines) + b"\r\n"


def split(content: bytes) -> tuple[list[bytes], bytes]:
    """Header fields with their line ends, and the body."""
    head, _, body = content.partition(b"\r\n\r\n")
    return re.findall(rb"[^\r\n][^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*", head + b"\r\n"), body


def signed(
    content: bytes, key: KeyPair, *, field: str = "DKIM-Signature", digest: str = "sha256", **tags: str
) -> bytes:
    """The message with a signature on top. `tags` come over the usual ones; an empty one is left out, ``b`` is b=.

    What h= names is signed as RFC 6376 section 5.4.2 says.
    """
    fields, body = split(content)
    form = tags.get("c", "relaxed/relaxed") or "simple/simple"
    header_form, _, body_form = form.partition("/")
    canonical = canonical_body(body, body_form or "simple")
    cut = canonical[: int(tags["l"])] if tags.get("l", "").isdigit() else canonical
    values = {
        "v": "1",
        "a": f"{key.kind}-sha256",
        "c": form,
        "d": "sender.example",
        "s": "sel",
        "h": "from:to:subject:date",
        "bh": base64.b64encode(hashlib.new(digest, cut).digest()).decode(),
        **tags,
    }
    forced = values.pop("b", None)
    text = "; ".join(f"{name}={value}" for name, value in values.items() if value) + ";\r\n\tb="
    own = f"{field}: {text}".encode()
    left = list(fields)
    out = b""
    for name in values["h"].split(":"):
        wanted = name.strip().lower().encode()
        at = max((i for i, f in enumerate(left) if f.split(b":")[0].strip().lower() == wanted), default=None)
        if at is not None:
            chosen = left.pop(at)
            out += relaxed_header(chosen) if header_form == "relaxed" else chosen
    out += relaxed_header(own)[:-2] if header_form == "relaxed" else own
    value = base64.b64encode(key.sign(out, digest)).decode() if forced is None else forced
    return own + value.encode() + b"\r\n" + content


def arc_set(
    content: bytes,
    number: int,
    domain: str,
    key: KeyPair,
    *,
    results: str,
    selector: str = "sel",
    cv: str | None = None,
    ams: Mapping[str, str] | None = None,
    seal: Mapping[str, str] | None = None,
) -> bytes:
    """The message with ARC set `number` on top, made from RFC 8617's words.

    `results` are what it reports, with places for ``{i}`` and ``{d}``; `ams` and `seal` are tags over the usual ones.
    """
    reported = b"ARC-Authentication-Results: " + results.format(i=number, d=domain).encode() + b"\r\n"
    tags = {"v": "", "i": str(number), "d": domain, "s": selector, **(ams or {})}
    message = signed(content, key, field="ARC-Message-Signature", **tags)[: -len(content)]
    values = {
        "i": str(number),
        "a": "rsa-sha256",
        "cv": cv or ("pass" if number > 1 else "none"),
        "d": domain,
        "s": selector,
        **(seal or {}),
    }
    own = ("ARC-Seal: " + "; ".join(f"{name}={value}" for name, value in values.items() if value) + "; b=").encode()
    before: dict[tuple[int, int], bytes] = {}
    order = [b"arc-authentication-results", b"arc-message-signature", b"arc-seal"]
    for field in split(reported + message + content)[0]:
        name = field.split(b":")[0].lower()
        if name in order:
            instance = re.search(rb"[\s;:]i ?= ?(\d+)", field)
            assert instance is not None
            before[int(instance[1]), order.index(name)] = relaxed_header(field)
    data = b"".join(before[at] for at in sorted(before)) + relaxed_header(own)[:-2]
    return own + base64.b64encode(key.sign(data)) + b"\r\n" + message + reported + content
