"""Hypothesis in this folder: no deadline, because the machine runs on shared cores."""

from hypothesis import settings

settings.register_profile("session", deadline=None, max_examples=150)
settings.load_profile("session")
