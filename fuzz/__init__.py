"""Fuzzing of the body readers: `python -m fuzz`."""
