"""The formulas of ``protocol.mixing`` on buffers: compiled, in float32 or wider, in memory that is free."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from wagma_jax.exchange.layouts import Layout
from wagma_jax.exchange.pool import Pool, Signature, model_signature, signature, sum_signature
from wagma_jax.exchange.storage import Buffers, storage_dtype, stored, sum_dtype, widened
from wagma_jax.protocol.mixing import SHARES


class Formulas:
    """Applies formulas; called as ``protocol.mixing.Compute``.

    Args:
        layouts: Of the buffers.
        device: The CPU device of the buffers.
        pool: Knows whose memory may be used.

    Attributes:
        spare: Buffers that are not needed any more once they have been used in a formula. Those that nobody else holds
            are spent on its result.
        model: The signature of models.
        share: That of shares.
    """

    def __init__(self, layouts: Sequence[Layout], device: Any, pool: Pool):
        self.spare: list[Buffers] = []
        self._dtypes = tuple(layout.dtype for layout in layouts)
        self.model: Signature = model_signature(layouts)
        self.share: Signature = sum_signature(layouts)
        self._here = jax.sharding.SingleDeviceSharding(device)
        self._pool = pool
        self._compiled: dict[Any, Any] = {}

    def __call__(self, formula: Callable[..., Any], *arguments: Any) -> Buffers:
        """The formula's result, complete on return; nobody holds it yet.

        Args:
            formula: Of ``protocol.mixing``.
            *arguments: Numbers, of which integers are constants of the compiled function, and then models.
        """
        numbers = [argument for argument in arguments if not isinstance(argument, tuple)]
        models: list[Buffers] = list(arguments[len(numbers) :])
        wanted = self.share if formula in SHARES else self.model
        place = next((i for i, model in enumerate(models) if self._is_spare(model, wanted)), None)
        if place is None:
            memory = self._pool.withdraw(wanted)
        else:
            memory = models[place]
            self._pool.spend(memory)
        constants = tuple(number if isinstance(number, int) else None for number in numbers)
        weights = [np.float32(number) for number in numbers if not isinstance(number, int)]
        separate = [memory] if place is None and memory else []
        donated = len(models) if separate else place
        function = self._function(
            formula, constants, len(separate), None if donated is None else len(weights) + donated
        )
        return jax.block_until_ready(function(*weights, *models, *separate))

    def release_spare(self) -> None:
        """Their holder releases what is spare, unless it was spent."""
        for buffers in self.spare:
            if self._pool.holds(buffers):
                self._pool.release(buffers)
        self.spare = []

    def _is_spare(self, model: Buffers, wanted: Signature) -> bool:
        spare = any(model is other for other in self.spare)
        return spare and self._pool.holds(model) == 1 and signature(model) == wanted

    def _function(
        self, formula: Callable[..., Any], constants: tuple[int | None, ...], extra: int, donated: int | None
    ) -> Any:
        key = formula, constants, extra, donated
        if key not in self._compiled:
            applied = functools.partial(_applied, formula, constants, extra, formula in SHARES, self._dtypes)
            self._compiled[key] = jax.jit(
                applied,
                in_shardings=self._here,
                out_shardings=self._here,
                donate_argnums=() if donated is None else donated,
                keep_unused=True,
            )
        return self._compiled[key]


def _applied(
    formula: Callable[..., Any],
    constants: tuple[int | None, ...],
    extra: int,
    is_share: bool,
    dtypes: Sequence[Any],
    *arguments: Any,
) -> Buffers:
    """The formula for each buffer; the last ``extra`` arguments are memory."""
    count = constants.count(None)
    models = arguments[count : len(arguments) - extra]
    results = []
    for k, dtype in enumerate(dtypes):
        wide = sum_dtype(storage_dtype(dtype))
        weights = iter(arguments[:count])
        numbers = [next(weights).astype(wide) if number is None else number for number in constants]
        result = formula(*numbers, *(widened(model[k], wide) for model in models))
        results.append(result if is_share else stored(result.astype(dtype)))
    return tuple(results)
