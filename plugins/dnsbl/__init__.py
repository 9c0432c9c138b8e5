"""DNS block and allow lists: is the client's address listed, and how much does that weigh?

Lists are asked all at once. Only answers in 127.0.0.0/8 count; 127.0.0.1 and 127.255.255.x are a list's way of
saying that it did not understand or does not serve us, and anything outside 127.0.0.0/8 is a parked domain. None of
these is ever a listing. A list that does not answer does not count, and the others do.

`codes` reads return codes, `tables` knows what those of the well-known lists mean, `options` is what the operator
writes, `zone` weighs one list's answer, `probe` finds out which lists are not to be believed, `plugin` asks and judges.

*RFCs*: 5782 (section 2.1 IPv4, 2.4 IPv6, 2.3 answers, 5 test entries).
"""

from plugins.dnsbl.codes import parse_code
from plugins.dnsbl.options import DnsblOptions, ZoneOptions
from plugins.dnsbl.plugin import DnsblPlugin, DnsblPolicy

__all__ = ["DnsblOptions", "DnsblPlugin", "DnsblPolicy", "ZoneOptions", "parse_code"]
