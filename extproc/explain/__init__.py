"""What a configuration will do, in words: for the person who wrote it."""

from extproc.explain.page import explain

__all__ = ["explain"]
