"""What the training scripts need of JAX's settings, which the user may have set for other programs."""

import jax

_GUARD = "transfer_guard"
_GUARDS = (_GUARD, *(f"{_GUARD}_{way}" for way in ("host_to_device", "device_to_device", "device_to_host")))

# setting -> values under which training works, and why it does not under others; None is JAX's own default
_NEEDED = {
    "disable_jit": ((False,), "since every step is compiled before it is timed"),
    "enable_x64": ((False,), "since all numbers have 32 bits or fewer"),
    "numpy_rank_promotion": (("allow", "warn"), "since the models broadcast arrays of different ranks"),
    "numpy_dtype_promotion": (("standard",), "since losses and models mix dtypes"),
    **dict.fromkeys(_GUARDS, ((None, "allow", "log", "log_explicit"), "since batches come from NumPy")),
}


def check() -> None:
    """Raises ValueError for a setting under which training would fail, or have other numbers."""
    for name, (good, reason) in _NEEDED.items():
        value = jax.config.values.get(f"jax_{name}", good[0])
        value = getattr(value, "value", value)  # of an enumeration
        if value not in good:
            variable = f"JAX_{name.upper()}"
            raise ValueError(f"{variable}={value} cannot be obeyed, {reason}: unset {variable}")


def check_platforms(needs_cpu: bool) -> None:
    """Makes JAX initialize its devices; to be called after all that must be set before.

    Args:
        needs_cpu: Whether the CPU must be one of them.

    Raises:
        ValueError: JAX is told to use devices that are not there, or to leave out the CPU.
    """
    platforms = jax.config.values.get("jax_platforms")
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter for CUDA without a GPU
        reason = f" ({' '.join(str(error).split())})" if str(error) else ""
        raise ValueError(
            f"JAX finds no device{reason}: JAX_PLATFORMS={platforms} must name what this host has, as in "
            "JAX_PLATFORMS=cpu, or be unset"
        ) from None
    if needs_cpu and "cpu" not in (platforms or "cpu").split(","):
        raise ValueError(
            f"JAX_PLATFORMS={platforms} leaves out the CPU, by which models travel over MPI: use "
            f"JAX_PLATFORMS={platforms},cpu"
        )
