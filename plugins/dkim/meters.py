"""What the four plugins count."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

SIGNATURES: Final = Counter("gatepost_dkim_signatures_total", "DKIM signatures looked at, by result.", ["result"])
SIGNED: Final = Counter("gatepost_dkim_signed_total", "DKIM signatures made, by algorithm.", ["algorithm"])
CHAINS: Final = Counter("gatepost_arc_chains_total", "ARC chains looked at, by result.", ["result"])
SEALED: Final = Counter("gatepost_arc_sealed_total", "ARC sets added, by what they say of the chain.", ["cv"])
