"""The Dagster assets, one file a stage. Each reads, calls moe_core, and reports; the work itself knows no Dagster."""
