"""The calls of one exchange: one at a time while it is open, and what becomes of one that ends by an exception."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from wagma_jax.exchange import children, ending
from wagma_jax.exchange.engine import Engine
from wagma_jax.exchange.errors import ExchangeError, described
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.isolation import own_settings
from wagma_jax.exchange.recorder import Recorder

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Calls:
    """Guards the calls of one exchange, the constructor's among them; ``calls.make("average", function)`` is one.

    A call on which others count, since its model is published or it rests, has to come to its end. If an exception of
    whatever kind leaves it (Ctrl-C is one), the exchange is over: the next call says so, and the others hear of it.
    To go on would lose the next local step, whose model the round has no place for any more.

    Args:
        gathering: How the others are told while there is no engine.

    Attributes:
        lock: Held during a call.
        closed: Whether no more calls are possible.
    """

    def __init__(self, gathering: Gathering):
        self.lock = threading.Lock()
        self.closed = False
        self._gathering = gathering
        self._rank = gathering.rank
        self._engine: Engine | None = None
        self._recorder: Recorder | None = None
        self._over: str | None = None  # why, if it is not closed regularly
        self._counted_on = False
        ending.opened(self, lambda: self.abort(f"rank {self._rank} ended without close()"))

    @contextlib.contextmanager
    def constructor(self) -> Iterator[None]:
        """The constructor: an error ends the exchange on all ranks."""
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise

    def opened(self, engine: Engine, recorder: Recorder | None) -> None:
        """The engine runs: calls are possible."""
        self._engine, self._recorder = engine, recorder

    def make(self, name: str, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """One call of the method ``name``, which is ``function``, inside of ``own_settings``.

        Raises:
            RuntimeError: The exchange is closed, another thread is inside of a call, or a child of a rank calls.
            ExchangeError: The run is over.
        """
        children.refuse(f"{name}()")
        if self.lock.locked():  # a signal could arrive between acquire(blocking=False) and a block that releases it
            raise RuntimeError(f"{name}() was called from two threads at once: call it from one")
        with self.lock:
            if self._over is not None:
                raise ExchangeError(
                    f"{name}() was called after the exchange was closed, since {self._over}: build a new exchange"
                )
            if self.closed or self._engine is None:
                raise RuntimeError(f"{name}() was called after the exchange was closed: build a new exchange")
            self._counted_on = False
            try:
                self._engine.enter()
                self._engine.raise_failure()
                with own_settings():
                    return function(*args, **kwargs)
            except (ExchangeError, TimeoutError) as error:
                self.fail(error)
                raise
            except BaseException as error:
                if self._counted_on:
                    self.fail(error, name)
                raise
            finally:
                self._engine.leave()

    def count_on(self) -> None:
        """From here on others count on the end of the call."""
        self._counted_on = True

    def close(self) -> None:
        """The exchange is closed regularly."""
        self.closed = True
        ending.closed(self, failed=False)

    def fail(self, error: BaseException, name: str = "") -> None:
        """Ends the exchange since an exception has left it, or its call ``name``."""
        if isinstance(error, SystemExit):
            ending.exits(error.code)
        text = f"rank {self._rank}'s {name}() was left by " if name else f"rank {self._rank} ended with "
        self.abort(text + described(error))

    def abort(self, text: str) -> None:
        """Ends the exchange on all ranks, unless it is over."""
        if self.closed or children.is_child():
            return
        self.closed, self._over = True, text
        ending.closed(self, failed=True)  # first, since this may be interrupted as well
        if self._engine is not None:
            self._engine.abort(text)
        if self._engine is None or self._engine.state.life.over:  # others may be in one of the steps of start and end
            self._gathering.fail(text, final=self._engine is None)
        if self._recorder is not None:
            self._recorder.close()


class Guarded(Protocol):
    """An exchange whose calls are guarded."""

    _call: Calls

    def _finish_steps(self) -> None: ...


_S = TypeVar("_S", bound=Guarded)


def guarded(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
    """A method of an exchange, as one call of it: see ``Calls.make``. Steps in flight are waited for before."""
    name: str = getattr(method, "__name__")  # noqa: B009

    @functools.wraps(method)
    def call(self: _S, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        children.refuse(f"{name}()")  # before JAX computes anything in a forked child
        self._finish_steps()
        return self._call.make(name, method, self, *args, **kwargs)

    return call
