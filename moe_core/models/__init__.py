"""Convolutional networks with their features apart from their head."""
