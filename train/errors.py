"""Errors that several parts of training know."""


class GaveUpError(RuntimeError):
    """Raised by a workload: the run ends, its user can mend the cause and go on from the last checkpoint."""
