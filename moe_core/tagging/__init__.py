"""Hashtags for many pictures: what is asked for, where the pictures come from, where the answers go. No stage knows it.

`inputs`, `answers` and `sidecars` need no more than a bundle does; `tables` and `output` need Arrow.
"""
