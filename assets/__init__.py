"""The Dagster assets, one file a stage. Each reads, calls moe_core, and reports; the work itself knows no Dagster."""

import moe_core  # noqa: F401  # before torch: it sets how threads wait
