"""Calls of Python by a jitted step, under all settings of JAX that its user may have chosen."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback

from wagma_jax import jax_internals
from wagma_jax.exchange.errors import described
from wagma_jax.exchange.isolation import cpu_device, own_settings
from wagma_jax.threads import xla_threads

_WIDE = ("float64", "complex128", "int64", "uint64")


def check_threads(num_devices: int = 1) -> None:
    """Refuses steps that call the exchange and would leave it no thread of XLA.

    Args:
        num_devices: Of the step.

    Raises:
        RuntimeError: Steps run on the CPU, and XLA has as few threads as devices.
    """
    threads = xla_threads()
    if jax.default_backend() == "cpu" and threads <= num_devices:
        raise RuntimeError(
            f"XLA has {threads} of the {num_devices + 1} threads that a step on {num_devices} CPU devices needs if it "
            f"calls the exchange, one of them for the exchange: set NPROC={num_devices + 1} before the process starts, "
            "or call average() between steps"
        )


def call_in_order(function: Callable[..., Any], like: Any, *args: Any) -> Any:
    """``io_callback(function, like, *args, ordered=True)``, to be traced.

    The function gets arrays on the CPU in the dtypes of ``args``. (``io_callback`` hands out 64-bit arrays in 32 bits:
    in the thread that calls the function they are not enabled.)

    Args:
        function: Maps arrays to a pytree of arrays.
        like: Shapes and dtypes of its results.
        *args: Pytrees of arrays.

    Raises:
        RuntimeError: The step occupies all threads of XLA.
    """
    check_threads(max(1, jax.sharding.get_abstract_mesh().size))
    kinds = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)

    def call(*halves: Any) -> Any:
        with own_settings():
            whole = jax.tree.map(_whole, kinds, halves)
        return jax.tree.map(lambda x, leaf: _halves(np.asarray(leaf, x.dtype)), like, function(*whole))

    halves = jax.tree.map(lambda x: jax.eval_shape(_traced_halves, x), like)
    halves = io_callback(call, halves, *jax.tree.map(_traced_halves, args), ordered=True)
    return jax.tree.map(_traced_whole, like, halves)


def finish() -> None:
    """Waits until the steps that this thread has dispatched are over; raises what one has failed of, once."""
    try:
        jax.effects_barrier()
    except Exception:
        jax_internals.forget_steps()
        make_token()
        raise
    make_token()


def begin() -> None:
    """To be called before steps that call an exchange: an earlier one that has failed does not fail them."""
    try:
        finish()
    except Exception as error:
        warnings.warn(f"a step that was dispatched before has failed: {described(error)}", stacklevel=4)


def make_token() -> None:
    """Has JAX make this thread's token, which orders callbacks, if there is none.

    Otherwise JAX makes it at the first step, by a transfer that a guard of the user's does not let pass.
    """
    with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
        io_callback(_nothing, None, ordered=True)


def _nothing() -> None:
    pass


def _halves(array: np.ndarray) -> np.ndarray:
    """An array of 64-bit values as uint32, with one axis more; others as they are."""
    if array.dtype.name not in _WIDE:
        return array
    return np.ascontiguousarray(array).reshape(*array.shape, 1).view(np.uint32)


def _whole(kind: Any, halves: Any) -> Any:
    if kind.dtype.name not in _WIDE:
        return halves
    return jax.device_put(np.asarray(halves).view(kind.dtype).reshape(kind.shape), cpu_device(), may_alias=True)


def _traced_halves(x: jax.Array) -> jax.Array:
    if x.dtype.name not in _WIDE:
        return x
    parts = jnp.stack([x.real, x.imag], -1) if x.dtype.name == "complex128" else x
    return lax.bitcast_convert_type(parts, jnp.uint32).reshape(*x.shape, x.dtype.itemsize // 4)


def _traced_whole(kind: Any, halves: jax.Array) -> jax.Array:
    if kind.dtype.name not in _WIDE:
        return halves
    if kind.dtype.name != "complex128":
        return lax.bitcast_convert_type(halves, kind.dtype)
    parts = lax.bitcast_convert_type(halves.reshape(*kind.shape, 2, 2), jnp.float64)
    return lax.complex(parts[..., 0], parts[..., 1])
