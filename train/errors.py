"""Errors that several parts of training share."""


class GaveUpError(RuntimeError):
    """Raised by a workload to end the run. Its user can fix the cause and go on from the last checkpoint."""
