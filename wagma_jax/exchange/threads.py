"""How many threads XLA has on the CPU."""

import jax

from wagma_jax import cpus


def xla_threads() -> int:
    """The threads of XLA for computations on the CPU: with several CPU devices at least as many as those."""
    try:
        return max(cpus.threads(), jax.local_device_count("cpu"))
    except RuntimeError:  # no CPU device, which is reported elsewhere
        return cpus.threads()
