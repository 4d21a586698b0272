"""graft: what happens to a student when it learns from a teacher of another kind."""

__version__ = "0.1.0"
