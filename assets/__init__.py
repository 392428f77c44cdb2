"""The Dagster assets: a row for each stage in graph.py, and what is shown of each. The work knows no Dagster."""

import moe_core  # noqa: F401  # before torch: it sets how threads wait
