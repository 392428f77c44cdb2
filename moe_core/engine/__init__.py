"""Runs any graph of stages; knows no expert and no trunk."""
