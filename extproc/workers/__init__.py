"""Several server processes on one machine, which count together."""
