"""Greylisting: who is not known is asked to come again, which mail servers do and most senders of spam don't.

Retries are recognised by the domain that SPF or DKIM proved, so that a pool of addresses is one client; by the
network only where nothing is proved. After some accepted messages all mail of a client passes. By default only
clients against which something speaks have to wait.

*Promises*: the null sender is never deferred before DATA, or callouts that check our senders would fail. A client in
`relay_from` never waits. Nothing is refused for good.

*Fails by*: `StateError` of the state store; the entry's `on_error` decides.

*RFCs*: 6647, 3463 (X.7.1).
"""

from plugins.greylist.plugin import GreylistPlugin, GreylistPolicy

__all__ = ["GreylistPlugin", "GreylistPolicy"]
