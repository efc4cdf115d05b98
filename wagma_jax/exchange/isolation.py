"""The settings of JAX under which the exchange computes, whatever the caller's are.

A user's settings would change what the exchange compiles (a mesh, 64-bit types, strict promotion), make it fail (checks
for NaNs read uninitialized memory), or have it compiled again in the middle of a run: they are a part of the key by
which JAX finds what it has compiled. They hold for a thread or for the process, so each thread that calls compiled
functions of the exchange enters ``own_settings`` first.
"""

import contextlib
import functools
import operator
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from wagma_jax import jax_internals

_config: Any = jax.config  # its attributes are made at run time
_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Setting(NamedTuple):
    """One setting of the exchange.

    Attributes:
        good: The values with which nothing is to be done.
        context: Sets it to one of them.
    """

    good: tuple[Any, ...]
    context: contextlib.AbstractContextManager[Any]


class _Caller(threading.local):
    """What is known of one thread.

    Attributes:
        x64: The caller's setting that matters inside of ``own_settings``; None outside of it.
        kept: The settings, which are entered again and again: making them takes time.
        seen: The caller's settings when they were last looked at.
        differing: Those to enter on account of them.
    """

    x64: bool | None = None
    kept: tuple[_Setting, ...] = ()
    seen: tuple[Any, ...] = ()
    differing: tuple[Any, ...] = ()


_caller = _Caller()


class own_settings:  # a generator would take twice the time to enter and leave
    """Inside of it, JAX in this thread has the settings of the exchange.

    Args:
        lasting: Whether the caller may change the process's settings meanwhile, from another thread.

    Raises:
        RuntimeError: It is entered while JAX traces a function.
    """

    def __init__(self, lasting: bool = False):
        self._lasting = lasting
        self._entered: list[Any] = []  # nothing inside of another one
        self._contexts: list[Any] = []

    def __enter__(self) -> None:
        if _caller.x64 is not None:
            return
        try:
            self._enter(jax.set_mesh(None))
        except ValueError as error:  # by which JAX says that it traces a function
            raise RuntimeError(
                "the exchange was called while JAX traces a function, where there are no values to exchange: call it "
                "outside of jax.jit and other transformations, or use as_transformation() inside of a jitted step"
            ) from error
        try:
            self._contexts = jax_internals.leave_contexts()
            x64 = bool(_config.jax_enable_x64)
            seen = _callers(_config)
            if seen != _caller.seen:
                _caller.kept = _caller.kept or _settings()
                pairs = zip(_caller.kept, seen, strict=True)
                _caller.differing = tuple(setting.context for setting, value in pairs if value not in setting.good)
                _caller.seen = seen
            # in a short call only those that differ: all take some 5 us
            for context in [setting.context for setting in _caller.kept] if self._lasting else _caller.differing:
                self._enter(context)
            if self._lasting or _config.jax_disable_jit:
                self._enter(jax.disable_jit(False))  # good for once only
            _caller.x64 = x64
        except BaseException:
            self._leave()
            raise

    def __exit__(self, *_: object) -> None:
        if self._entered:
            self._leave()

    def _enter(self, context: Any) -> None:
        context.__enter__()
        self._entered.append(context)

    def _leave(self) -> None:
        _caller.x64 = None
        while self._entered:
            self._entered.pop().__exit__(None, None, None)
        jax_internals.enter_contexts(self._contexts)


def isolated(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, called inside of ``own_settings``, for however long."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with own_settings(lasting=True):
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


def _settings() -> tuple[_Setting, ...]:
    """The settings, in the order of ``_WANTED``."""
    # None means the CPU where nothing else is, and is what most callers have. A lack is reported where all learn of it
    elsewhere = _has_cpu() and jax.default_backend() != "cpu"
    wanted = {**_WANTED, "default_device": (cpu_device() if elsewhere else None,)}
    return tuple(_setting(name, *values) for name, values in wanted.items())


def _setting(name: str, value: Any, *also: Any) -> _Setting:
    context = getattr(jax, name)(value)
    with context:
        kept = getattr(_config, f"jax_{name}")  # may be another object
    return _Setting((kept, *also), context)


_WANTED = {
    "enable_x64": (True,),  # 64-bit leaves stay what they are; no dtype here depends on it
    "default_device": (),  # known later
    "numpy_dtype_promotion": ("standard",),
    "numpy_rank_promotion": ("allow",),
    "default_matmul_precision": (None,),
    "debug_nans": (False,),  # models are checked by the user's own functions; here memory is uninitialized
    "debug_infs": (False,),
    "check_tracer_leaks": (False,),
    "debug_key_reuse": (False,),
    "threefry_partitionable": (True,),
    "transfer_guard_host_to_device": ("allow", None),  # None: as JAX is without it
    "transfer_guard_device_to_device": ("allow", None),
    "transfer_guard_device_to_host": ("allow", None),
}
"""The settings: the value that is set, and others as good."""
_callers = operator.attrgetter(*(f"jax_{name}" for name in _WANTED))
