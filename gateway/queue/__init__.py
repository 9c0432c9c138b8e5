"""The queue: what is due, when it is tried again, and whom to tell. See ARCHITECTURE.md, "The way of a message"."""
