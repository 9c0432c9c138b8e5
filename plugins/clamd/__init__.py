"""Virus scanning by clamd: the message is streamed to it with INSTREAM, and what it found decides.

====== =====================================================================
module holds
====== =====================================================================
codec  INSTREAM as octets and replies, without I/O
client one exchange over one connection
plugin options, finding and policy
====== =====================================================================

*Promises*: a message is never held in memory for it. What a scanner did not look at is never called clean.

*Fails by*: OSError when clamd cannot be reached, hangs up or answers nonsense; the entry's `on_error` decides.
"""

from plugins.clamd.plugin import ClamdPlugin, ClamdPolicy

__all__ = ["ClamdPlugin", "ClamdPolicy"]
