"""The public face of Gatepost: all that the author of a plugin or a policy may import.

See docs/plugins.md for the guide. Names listed here keep their meaning between minor versions.
"""

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.envelope import MailParameters, Recipient
from gateway.mail.message import Content, HeaderField
from gateway.mail.reply import Reply
from gateway.mail.session import Session, Tls
from gateway.sdk.findings import (
    Dnsbl,
    Finding,
    ListHit,
    Rate,
    RecipientState,
    RecipientStatus,
    Spf,
    SpfResult,
)
from gateway.sdk.options import Duration, OptionsModel, Size
from gateway.sdk.plugin import Plugin, PluginOptions, acts, finds
from gateway.sdk.policy import Policy, PolicyOptions
from gateway.sdk.services import (
    Answer,
    Callout,
    CalloutState,
    Clock,
    Directory,
    Dns,
    DnsStatus,
    Mx,
    RecipientRule,
    Services,
    State,
    StateError,
    Taken,
)
from gateway.sdk.stage import Message, Stage, Transaction
from gateway.sdk.verdict import (
    PROCEED,
    Action,
    AddHeader,
    ChangeHeader,
    DeleteHeader,
    Edit,
    Verdict,
    accept,
    annotate,
    defer,
    discard,
    disconnect,
    quarantine,
    reject,
)

__all__ = [
    "NULL_SENDER",
    "PROCEED",
    "Action",
    "AddHeader",
    "Address",
    "Answer",
    "Callout",
    "CalloutState",
    "ChangeHeader",
    "Clock",
    "Content",
    "DeleteHeader",
    "Directory",
    "Dns",
    "DnsStatus",
    "Dnsbl",
    "Duration",
    "Edit",
    "Finding",
    "HeaderField",
    "ListHit",
    "MailParameters",
    "Message",
    "Mx",
    "OptionsModel",
    "Plugin",
    "PluginOptions",
    "Policy",
    "PolicyOptions",
    "Rate",
    "Recipient",
    "RecipientRule",
    "RecipientState",
    "RecipientStatus",
    "Reply",
    "Sender",
    "Services",
    "Session",
    "Size",
    "Spf",
    "SpfResult",
    "Stage",
    "State",
    "StateError",
    "Taken",
    "Tls",
    "Transaction",
    "Verdict",
    "accept",
    "acts",
    "annotate",
    "defer",
    "discard",
    "disconnect",
    "finds",
    "quarantine",
    "reject",
]
