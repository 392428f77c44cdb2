"""The stages of a study. A room's `stages.py` says what each is made from; `graph.py` has them all, in order."""
