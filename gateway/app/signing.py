"""Mail of Gatepost's own leaves signed: DSNs and reports, by whichever plugins of the pipelines sign.

The core knows no keys. A plugin that `signs` is asked to sign what we wrote (`gateway.sdk.plugin.Plugin.sign_own`), so
the key, its domain and the form of the signature are those that the operator chose for everybody's mail.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.mail.edit import BodyContent, render_field
from gateway.mail.message import split_header
from gateway.ops import log, metrics
from gateway.pipeline.loader import Pipeline
from gateway.sdk.stage import Message

_log = log.get()


class OwnSigner:
    """Implements `gateway.queue.settler.Signer`: the first pipeline that signs it decides."""

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self._pipelines = [p for p in pipelines.values() if any(e.plugin and e.plugin.signs for e in p.entries)]

    async def sign(self, content: bytes) -> bytes:
        """The message with its signatures on top, or as it was."""
        if not self._pipelines:
            return content
        try:
            fields, _ = split_header(content)
            message = Message(tuple(fields), BodyContent(content))
            for pipeline in self._pipelines:
                if made := await pipeline.sign_own(message):
                    metrics.OWN_SIGNATURES.labels("signed").inc()
                    return b"".join(render_field(edit.name, edit.value, edit.lead) for edit in made) + content
        except Exception:  # noqa: BLE001 - whatever a plugin gave: a bounce without a signature is better than none
            _log.exception("own.sign_failed")
        metrics.OWN_SIGNATURES.labels("unsigned").inc()
        return content
