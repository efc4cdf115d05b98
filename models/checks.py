"""Checks that the configurations of all networks share; their messages name the field."""

from typing import Any

import jax.numpy as jnp


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises ValueError if the value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}; pass one of those")


def check_count(name: str, value: Any) -> None:
    """Raises ValueError if the value is no integer of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}; pass e.g. 10")


def check_floating(name: str, dtype: Any) -> None:
    """Raises ValueError if a dtype is no floating type."""
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"{name} must be a floating type, got {dtype!r}; pass e.g. jnp.float32")
