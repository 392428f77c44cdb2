"""Planning and running what is missing or stale."""
