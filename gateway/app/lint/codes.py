"""Every check of lint's own, with its code. A code keeps its meaning for ever; docs/lint.md explains each.

The first digit says what it is about: 0 lint itself, 1 relaying, 2 domains and recipients, 3 order and what is never
asked, 4 failure, 5 time, 6 size, 7 the machine and its front door, 8 what happens after acceptance.
"""

from __future__ import annotations

from typing import Final

from gateway.sdk.lint import Check, Severity

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

BAD_IGNORE: Final = Check("GP001", _W, "a comment that ignores does not say why, or names no code")
IDLE_IGNORE: Final = Check("GP002", _N, "a comment ignores what is not there")
BROKEN_HOOK: Final = Check("GP003", _W, "a plugin's or policy's own check failed")

EVERYBODY_RELAYS: Final = Check("GP101", _E, "`relay_from` holds a large part of the Internet")
PUBLIC_RELAYS: Final = Check("GP102", _W, "`relay_from` holds a large public network")
PROXY_RELAYS: Final = Check("GP103", _W, "a proxy may relay, and a listener takes it for the client")
CONTAINER_RELAYS: Final = Check("GP104", _W, "a container network may relay, and may hide strangers")
PRIVATE_RELAYS: Final = Check("GP105", _N, "a wide private network may relay, with container networks in it")
FORGED_CLIENT: Final = Check("GP106", _E, "strangers may say that they are somebody else")
XCLIENT_RELAYS: Final = Check("GP107", _W, "who may use XCLIENT may also relay without it")

PUBLIC_SUFFIX: Final = Check("GP201", _E, "a domain of ours is a public suffix")
ANY_SUBDOMAIN: Final = Check("GP202", _W, "all subdomains are ours, with any recipient")
UNCHECKED_RECIPIENTS: Final = Check("GP203", _W, "recipients are taken that the next hop may refuse")
STRANGERS_MAILBOXES: Final = Check("GP204", _W, "strangers name the mailboxes that are made")
TAKEN_WHILE_DOWN: Final = Check("GP205", _N, "while nobody can check them, recipients are taken")
NOBODY_REFUSES: Final = Check("GP206", _W, "recipients shall be checked, and the pipeline refuses none")
LOOP: Final = Check("GP207", _E, "a next hop is a listener of ours")
OWN_MX: Final = Check("GP208", _N, "a domain of ours goes to its own MX")

CLAIM_ACCEPTS: Final = Check("GP301", _W, "what anybody can say of himself lets him pass checks")
SERVICE_ACCEPTS: Final = Check("GP302", _N, "a service that is asked can end the stage")
ACCEPTS_UNKNOWN: Final = Check("GP303", _W, "accepting skips the check of recipients")
NEVER_ASKED: Final = Check("GP304", _W, "entries come after one that always decides")
NO_STAGE: Final = Check("GP305", _W, "an entry is asked at no stage")
NOBODY_TAKES: Final = Check("GP306", _N, "what an entry finds, nobody takes")
UNUSED_PIPELINE: Final = Check("GP307", _W, "a pipeline is used by nobody")
REPLACED_PIPELINE: Final = Check("GP308", _W, "all domains replace a listener's pipeline")
NOT_ENFORCED: Final = Check("GP309", _N, "an entry is enforced for nobody")
HALF_AUTHENTICATION: Final = Check("GP310", _W, "an authentication check lacks what it builds on")
CHANGED_AFTER_SIGNING: Final = Check("GP311", _W, "a message is signed, and then changed")

NO_POLICY: Final = Check("GP401", _N, "an entry asks a service and does not say what its failure means")
UNSCANNED: Final = Check("GP402", _W, "while the only virus scanner fails, all passes")
UNPROTECTED: Final = Check("GP403", _N, "while the only check of its kind fails, all passes")
REFUSED_FOR_GOOD: Final = Check("GP404", _W, "our own trouble refuses mail for good")

TOO_SLOW: Final = Check("GP501", _E, "a reply may take longer than clients must wait")
SLOW: Final = Check("GP502", _W, "a reply may take more than half of the time that clients must wait")
NEVER_SO_LONG: Final = Check("GP503", _W, "an entry's timeout is longer than its stage may take")
TIMEOUT_FIRST: Final = Check("GP504", _W, "an entry's timeout comes before its own time limit")
HASTY: Final = Check("GP505", _N, "clients get less time for a command than the standard asks for")

BIG_UNSCANNED: Final = Check("GP601", _W, "large messages pass the virus scanner unscanned")
BIG_UNCHECKED: Final = Check("GP602", _N, "large messages pass a content filter unchecked")

NO_TLS: Final = Check("GP701", _W, "a listener offers no TLS")
EXPIRED: Final = Check("GP702", _E, "a certificate is one that clients refuse")
EXPIRING: Final = Check("GP703", _W, "a certificate ends soon")
OTHER_NAME: Final = Check("GP704", _W, "a certificate is not for our name")
OPEN_ADMIN: Final = Check("GP705", _N, "the admin server can be reached from outside, in the clear")
NO_NAME: Final = Check("GP706", _W, "our name is none that others can look up")
SHORT_ID: Final = Check("GP707", _N, "`authserv_id` is no name of ours alone")
SPOOL_IN_MEMORY: Final = Check("GP708", _E, "the spool is in memory")
NO_ROOM: Final = Check("GP709", _E, "the spool's disk is too small")
STATE_IN_MEMORY: Final = Check("GP710", _N, "the state is in memory")
SHUT_OUT: Final = Check("GP711", _W, "strangers cannot use TLS")
CA_ENDED: Final = Check("GP712", _W, "a CA of the clients is out of its time")

GIVES_UP_SOON: Final = Check("GP801", _W, "mail is given up within a day")
GIVES_UP_EARLY: Final = Check("GP802", _N, "mail is given up earlier than the standard asks for")
NEVER_WARNED: Final = Check("GP803", _N, "the warning about a delay never comes")
THROWN_AWAY: Final = Check("GP804", _W, "copies that a filter refuses are thrown away after 250")
ONE_BY_ONE: Final = Check("GP805", _N, "clients must send a message once for each pipeline")
IN_THE_CLEAR: Final = Check("GP806", _N, "mail goes to a next hop in the clear")
NOBODY_VALIDATES: Final = Check("GP807", _W, "DANE is asked for, and nobody's word on DNSSEC is taken")
NOT_CHECKED: Final = Check("GP808", _W, "a next hop's certificate is described, and not checked")
NAMED_BY_DNS: Final = Check("GP809", _N, "a certificate is checked for a name that DNS gives")

CHECKS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Check))
