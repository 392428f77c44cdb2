"""The Dagster entry point, jobs and the hardmoe command."""

import moe_core  # noqa: F401  # before torch: it sets how threads wait
