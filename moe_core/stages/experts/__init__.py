"""Experts, the decoder that they share, and the controls that are trained as they are."""
