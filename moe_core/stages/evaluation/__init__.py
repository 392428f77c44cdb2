"""The comparison table and the report."""
