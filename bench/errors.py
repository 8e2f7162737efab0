"""What makes a benchmark worthless."""


class BenchError(Exception):
    """Something to install, a server that does not start, or a run in which requests failed."""
