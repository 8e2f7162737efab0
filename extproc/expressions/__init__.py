"""CEL: compiled once, analysed once, evaluated per exchange."""

from extproc.expressions.program import Expression, ExpressionError, MissingKey, text_of
from extproc.expressions.references import PointerCall, References

__all__ = ["Expression", "ExpressionError", "MissingKey", "PointerCall", "References", "text_of"]
