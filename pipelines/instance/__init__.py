"""Dagster's instance of a study: DAGSTER_HOME where the user has one, else the folder `dagster` in the study's root."""
