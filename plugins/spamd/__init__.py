"""Spam scoring by SpamAssassin's spamd: the message is streamed to it, and score and rules decide.

====== =====================================================================
module holds
====== =====================================================================
codec  the SPAMC protocol as octets, without I/O
client one request over one connection
trace  the header fields that tell spamd where the message came from
fields the header fields that tell the reader what spamd said
plugin options, finding and policy
====== =====================================================================

*Promises*: a message is never held in memory for it. X-Spam-* fields that the sender made up never survive, whatever
the score is, and also when spamd does not answer.

*Fails by*: OSError when spamd cannot be reached, hangs up, says that it failed or answers nonsense; the entry's
`on_error` decides.

*RFCs*: 5321 section 4.4 (Received), 3463 (X.6.0, X.7.1).
"""

from plugins.spamd.plugin import SpamdPlugin, SpamdPolicy

__all__ = ["SpamdPlugin", "SpamdPolicy"]
