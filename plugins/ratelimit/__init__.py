"""Rate limits: token buckets for whatever comes too often from somewhere, shared by all workers.

A bucket holds `burst` tokens, starts full and is refilled steadily. What finds it empty is deferred, or at connect
turned away for now; nothing is ever refused for good. Connections, messages, recipients and octets take tokens when
they come. Unknown recipients and errors take theirs when they have happened, and the bucket is looked at before more
is taken from the same source.
"""

from plugins.ratelimit.limits import Counted, LimitOptions, RateLimitOptions, parse_rate
from plugins.ratelimit.plugin import RateLimitPlugin, RateLimitPolicy

__all__ = ["Counted", "LimitOptions", "RateLimitOptions", "RateLimitPlugin", "RateLimitPolicy", "parse_rate"]
