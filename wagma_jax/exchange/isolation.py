"""The settings of JAX under which the exchange computes, whatever the caller's are.

A user's settings would change what the exchange compiles (a mesh, 64-bit types, strict promotion), make it fail (checks
for NaNs read uninitialized memory), or have it compiled again in the middle of a run: they are a part of the key by
which JAX finds what it has compiled. They hold for a thread or for the process, so each thread that calls compiled
functions of the exchange enters ``own_settings`` first.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

_config: Any = jax.config  # its attributes are made at run time
_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Caller(threading.local):
    """The caller's setting that matters inside of ``own_settings``; None outside of it."""

    x64: bool | None = None
    kept: tuple[contextlib.AbstractContextManager[Any], ...] = ()  # this thread's, which are entered again and again


_caller = _Caller()


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Inside of it, JAX in this thread has the settings of the exchange.

    Raises:
        RuntimeError: It is entered while JAX traces a function.
    """
    if _caller.x64 is not None:
        yield
        return
    entered: list[contextlib.AbstractContextManager[Any]] = []
    with untraced():
        try:
            x64 = bool(_config.jax_enable_x64)
            if not _caller.kept:  # making them anew would take most of the time
                device = cpu_device() if _has_cpu() else None  # reported where all ranks learn of it
                _caller.kept = _settings(device)
            for setting in _caller.kept:
                _enter(setting, entered)
            _enter(jax.disable_jit(False), entered)  # good for once only, as those of transfer_guard()
            _caller.x64 = x64
            yield
        finally:
            _caller.x64 = None
            while entered:
                entered.pop().__exit__(None, None, None)


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Inside of it there is no mesh: one of ``own_settings``, by which JAX finds out whether it traces a function.

    Raises:
        RuntimeError: It does.
    """
    try:
        no_mesh: Any = jax.set_mesh(None)
        no_mesh.__enter__()
    except ValueError as error:
        raise RuntimeError(
            "the exchange was called while JAX traces a function, where there are no values to exchange: call it "
            "outside of jax.jit and other transformations, or use as_transformation() inside of a jitted step"
        ) from error
    try:
        yield
    finally:
        no_mesh.__exit__(None, None, None)


def _enter(context: Any, entered: list[Any]) -> None:
    context.__enter__()
    entered.append(context)


def isolated(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, called inside of ``own_settings``."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with own_settings():
            return function(*args, **kwargs)

    return wrapped


def callers_x64() -> bool:
    """Whether 64-bit types are enabled for the caller, inside of ``own_settings`` or not."""
    return bool(_config.jax_enable_x64) if _caller.x64 is None else _caller.x64


def dtype_of(leaf: Any, x64: bool) -> Any:
    """The dtype that a leaf has, or will have, in JAX.

    Args:
        leaf: An array or scalar.
        x64: Whether 64-bit types are enabled for those who own it.
    """
    if isinstance(leaf, jax.Array):
        return leaf.dtype
    with jax.enable_x64(x64):
        return jnp.result_type(leaf)


@functools.cache
def cpu_device() -> Any:
    """The device of all buffers of the exchange.

    Raises:
        RuntimeError: JAX is told to have none.
    """
    if not _has_cpu():
        platforms = _config.jax_platforms
        raise RuntimeError(
            f"JAX_PLATFORMS={platforms} leaves out the CPU, by which models travel: name it last, as in "
            f"JAX_PLATFORMS={platforms},cpu"
        )
    return jax.local_devices(backend="cpu")[0]


def _has_cpu() -> bool:
    return "cpu" in (_config.jax_platforms or "cpu").split(",")


def _settings(device: Any) -> tuple[contextlib.AbstractContextManager[Any], ...]:
    return (
        jax.enable_x64(True),  # 64-bit leaves stay what they are; no dtype here depends on it
        jax.default_device(device),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision(None),
        jax.debug_nans(False),  # models are checked by the user's own functions; here memory is uninitialized
        jax.debug_infs(False),
        jax.check_tracer_leaks(False),
        jax.debug_key_reuse(False),
        jax.transfer_guard_host_to_device("allow"),
        jax.transfer_guard_device_to_device("allow"),
        jax.transfer_guard_device_to_host("allow"),
    )
