"""What is raised when a run is over, and how failures are told to other ranks."""


class ExchangeError(RuntimeError):
    """The run is over: this worker's engine or another worker has failed."""

    __module__ = "wagma_jax"  # where users find it, and what tracebacks say


def described(error: BaseException) -> str:
    """The kind of an exception and its text, if it has one."""
    return ": ".join(filter(None, (type(error).__name__, str(error))))
