"""Policy delegation: a server that speaks the Postfix policy protocol is asked, and what it answers is done."""

from plugins.delegation.plugin import DelegationOptions, DelegationPlugin, DelegationPolicy

__all__ = ["DelegationOptions", "DelegationPlugin", "DelegationPolicy"]
