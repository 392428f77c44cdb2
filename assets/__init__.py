"""The Dagster assets, one file a stage."""
