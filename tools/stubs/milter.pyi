"""Types of pymilter's extension module, as far as it is used here (pymilter 1.0.5 has none of its own)."""

CONTINUE: int
REJECT: int
DISCARD: int
ACCEPT: int
TEMPFAIL: int
SKIP: int

ADDHDRS: int
CHGHDRS: int
MODBODY: int
CHGFROM: int
ADDRCPT: int
ADDRCPT_PAR: int
DELRCPT: int
QUARANTINE: int

P_HDR_LEADSPC: int

class error(Exception): ...

def set_flags(flags: int, /) -> None: ...
