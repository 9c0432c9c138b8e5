"""The spool that several machines share: PostgreSQL. See docs/spool.md, "Many machines"."""
