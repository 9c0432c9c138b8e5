"""What every state store, spool and transport must do, as test classes to derive from."""
