"""Dagster's UI: code server, guarded webserver and daemon."""
