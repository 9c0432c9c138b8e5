"""The spool: what is on disk. See docs/spool.md for the states and the crash argument."""
