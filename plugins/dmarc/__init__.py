"""DMARC: does the domain in From stand behind the message, what does it ask for if not, and reports to its owner.

========== =====================================================================
module     holds
========== =====================================================================
author     the author domain, out of From
record     policy records and reporting addresses
discovery  where records and organisational domains are: tree walk or suffixes
evaluate   the result: alignment, policy, testing
policy     what is done by it, and the reasons to do otherwise
tally      what was done, counted
report     the aggregate report and its mail
reporter   when, to whom, once
plugin     all of it, as the pipeline sees it
========== =====================================================================

*RFCs*: 9989 (or 7489 where so configured), 9990, 8601.
"""

from plugins.dmarc.plugin import DmarcPlugin

__all__ = ["DmarcPlugin"]
