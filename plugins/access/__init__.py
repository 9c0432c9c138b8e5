"""Access lists: what a postmaster has written down about clients, names, senders and recipients.

Lists stand in the configuration or in files, in the manner of Postfix's access(5), cidr_table(5) and regexp_table(5).
Lists are asked in order, and in each list the first line that matches decides. Files are read again when they change.

*Promises*: regular expressions run in linear time, whatever they are and whatever they are applied to. An allow entry
opens no relay: relay control comes before any plugin.
"""

from plugins.access.plugin import AccessOptions, AccessPlugin, AccessPolicy, ListOptions

__all__ = ["AccessOptions", "AccessPlugin", "AccessPolicy", "ListOptions"]
