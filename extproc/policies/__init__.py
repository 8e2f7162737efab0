"""Kuadrant's documents as input; see docs/policies.md."""

from extproc.policies.compile import Compiled, compile_policies, merged
from extproc.policies.documents import Document, read_policies

__all__ = ["Compiled", "Document", "compile_policies", "merged", "read_policies"]
