"""The Dagster entry point, jobs and the hardmoe command."""
