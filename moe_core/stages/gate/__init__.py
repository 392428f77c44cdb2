"""The partition of posts among experts: the gate."""
