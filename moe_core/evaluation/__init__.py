"""Metrics, controls and the comparison table."""
