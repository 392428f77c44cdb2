"""Stages of the trunk: its training and its features."""
