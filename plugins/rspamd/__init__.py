"""Spam filtering by rspamd over HTTP: the message is streamed to it, and the action that it advises is taken.

====== =====================================================================
module holds
====== =====================================================================
reply  what rspamd answers, checked
milter the changes to a message that it asks for
client one request over kept connections
plugin options, finding and policy
====== =====================================================================

*Promises*: a message is never held in memory for it. The password is in no text.

*Fails by*: OSError when rspamd cannot be reached, hangs up, or answers nonsense, an error, or an action that nobody
knows; the entry's `on_error` decides.

*RFCs*: 3463 (X.7.1).
"""

from plugins.rspamd.plugin import RspamdPlugin, RspamdPolicy

__all__ = ["RspamdPlugin", "RspamdPolicy"]
