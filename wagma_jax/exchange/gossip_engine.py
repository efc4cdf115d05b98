"""The engine of gossip: it pushes and pulls by posted messages, mixes, and hands the result to the trainer."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from mpi4py import MPI

from wagma_jax.exchange import tags
from wagma_jax.exchange.engine import WIND_UP_SECONDS, Engine
from wagma_jax.exchange.formulas import Formulas
from wagma_jax.exchange.pool import Pool, Signature, model_signature, sum_signature
from wagma_jax.exchange.recorder import Recorder
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.wire import Wire
from wagma_jax.exchange.wire.polled import Polled, Posted
from wagma_jax.ledger import entries
from wagma_jax.protocol import messages, mixing
from wagma_jax.protocol.gossip import Begin, Gossip, Heard, Mix, Pull, Pulled, Push
from wagma_jax.protocol.mixing import Held, Mixing, Share

_POLL_SECONDS = 5e-5


class Holding(NamedTuple):
    """What one worker holds while all stand still.

    Attributes:
        held: Of its own.
        came: What has come and counts in the next round.
    """

    held: Held
    came: tuple[Share, ...] = ()


class GossipEngine(Engine):
    """Runs a machine of gossip.

    Beside the user's own there are at a time the model that is held, the trainer's W' or what was made of it, those
    that come in a round, and what was pushed and is not sent yet.

    Args:
        machine: The protocol of this worker.
        mixing: What is pushed and how it is mixed.
        wire: Takes global means.
        control: A communicator for control messages, used by nobody else.
        staging: Made the buffers.
        holding: What this worker holds at first.
        first_round: The round to begin with.
        recorder: Gets an entry for every round, or None.

    Attributes:
        held: What this worker holds.
    """

    def __init__(
        self,
        machine: Gossip,
        mixing: Mixing,
        wire: Wire,
        control: MPI.Intracomm,
        staging: Staging,
        holding: Holding,
        first_round: int,
        recorder: Recorder | None = None,
    ):
        state = machine.start(first_round, have_come=bool(holding.came))
        super().__init__(machine, state, wire, control, recorder)
        self._mixing, self._staging = mixing, staging
        self._polled = Polled(wire.comm, tags.PUSH)
        layouts = staging.layouts
        # of the engine's thread alone, once it runs
        self._pool = Pool(machine.schedule.group_size, model_signature(layouts), sum_signature(layouts))
        self._compute = Formulas(layouts, staging.device, self._pool)
        self._apart = Formulas(layouts, staging.device, Pool(0))  # of the trainer's thread
        self._pushed = self._compute.share if mixing.wide else self._compute.model
        for came in holding.came:
            self._pool.hold(came.model)
        self.held = Held(None, None)
        self._put(holding.held)
        self._stepped: Buffers | None = None  # W', until it is mixed
        self._sends: list[tuple[Buffers, Posted]] = []
        self._pulls: dict[int, Posted] = {}  # by the source
        self._came = dict(zip(machine.counting(state), holding.came, strict=False))
        self._mixed = first_round - 1  # the newest round whose result is held
        self._sources: tuple[int, ...] = ()  # from whom what was mixed in it has come

    def warm_up(self) -> None:
        """Compiles what rounds need, and brings memory for what comes; by the thread that makes the engine."""
        sources = max(1, self.machine.schedule.group_size) - 1
        for came, rests in ((sources, False), (sources, True), (0, False))[: 3 if self.machine.lag else 2]:
            models = [self._staging.copy(self.held.model) for _ in range(2)]
            shares = [Share(self._memory(self._pushed), np.float32(1)) for _ in range(came)]
            for model in models:
                self._pool.hold(model)
            self._compute.spare = [models[1], *(share.model for share in shares)]
            stepped = None if rests else models[1]
            held, _ = self._mixing.push(Held(models[0], models[0], np.float32(1)), stepped, sources + 1, self._compute)
            self._mixing.mix(held, stepped, shares, came + 1, self._compute)
            self._compute.release_spare()
            self._pool.release(models[0])

    # the trainer's side

    def start(self) -> None:
        """Starts the thread."""
        self._events.post(Begin())
        super().start()

    def arrive(self, model: Buffers | None, counter: int) -> int:
        """Hands in W' for the next round.

        Args:
            model: W', the engine's from now on; None: there is no step.
            counter: The round of the previous call.

        Returns:
            The round.
        """
        stepped = self._staging.copy(self.held.taken) if model is None else model
        with self._changed:
            t = self.machine.target(self.state, counter)
            self._stepped = stepped
            self._waits.begin()
        self._events.post(messages.Arrive(t))
        return t

    def pass_alone(self, counter: int) -> int:
        """Arrives at the next round of the only worker there is, whose model stays with its trainer."""
        with self._changed:
            t = self.machine.target(self.state, counter)
            self.state, _ = self.machine.step(self.state, messages.Arrive(t))
            self._mixed = t
            if self._recorder is not None:
                now = time.perf_counter()
                self._recorder.add(entries.Mixed(t, (), True, now, now))
        return t

    def take(self, t: int, timeout: float) -> tuple[Buffers, tuple[int, ...], dict[int, float]]:
        """Waits until round t is complete.

        Returns:
            The model, left as it is until the trainer arrives again; from whom what was mixed has come; and the seconds
            that this worker has waited for others, by rank (empty without a ledger).

        Raises:
            ExchangeError: The run is over.
            TimeoutError: It took longer than ``timeout`` seconds; says who was waited for.
        """
        with self._changed:
            self._wait(lambda: self._mixed >= t, timeout, f"round {t}")
            self._waits.watch(())
            return self.held.model, self._sources, self._waits.seconds

    def holding(self) -> Holding:
        """What this worker holds while all stand still."""
        with self._changed:
            return Holding(self.held, self._counting() if self.machine.lag else ())

    def share(self, model: Buffers) -> Buffers:
        """What this worker would bring to a global mean, if its trainer handed in ``model``; while all stand still."""
        with self._changed:
            held, came = self.held, self._counting()
        return self._mixing.contribute(held, model, came, self._apart)

    # the engine's thread

    def _exchange(self, action: Any) -> list[Any]:
        if isinstance(action, Pull):
            for source in action.sources:
                self._pulls[source] = self._polled.post(source, memory=self._memory(self._pushed))
        elif isinstance(action, Push):
            self._push(action)
        else:
            assert isinstance(action, Mix), action
            self._mix(action)
        return []

    def _push(self, action: Push) -> None:
        stepped = self._take_up() if self.state.arrived >= action.round else None
        held, share = self._mixing.push(self.held, stepped, len(action.dests) + 1, self._compute)
        with self._changed:
            self._put(held)
        header = action.round, int(np.float32(share.weight).view(np.int32))
        for dest in action.dests:
            self._pool.hold(share.model)
            self._sends.append((share.model, self._polled.post(dest, share.model, header)))

    def _mix(self, action: Mix) -> None:
        begin = time.perf_counter()
        came = [self._came.pop(source) for source in action.sources]
        stepped = self._take_up() if action.stepped else None
        self._compute.spare += [share.model for share in came]
        held = self._mixing.mix(self.held, stepped, came, len(came) + 1, self._compute)
        with self._changed:
            self._put(held._replace(kept=None))
            self._stepped = None
            self._mixed, self._sources = action.round, action.sources
            if self._recorder is not None:
                sources, stepped_too = action.sources, action.stepped
                self._recorder.add(entries.Mixed(action.round, sources, stepped_too, begin, time.perf_counter()))
            self._changed.notify_all()
        self._compute.release_spare()

    def _take_up(self) -> Buffers:
        """W', which is held until its round is mixed."""
        stepped = self._stepped
        assert stepped is not None
        if not any(stepped is other for other in self._compute.spare):
            self._pool.hold(stepped)
            self._compute.spare.append(stepped)
        return stepped

    def _poll(self) -> Pulled | Heard | None:
        self._test_sends()
        for source, posted in self._pulls.items():
            if posted.test():
                del self._pulls[source]
                r, bits = posted.header
                expected = self.state.round - self.machine.lag
                assert r == expected, f"rank {source} has pushed round {r} instead of {expected}"
                self._came[source] = Share(posted.memory, np.int32(bits).view(np.float32))
                return Pulled(source)
        for source in self.machine.listens_to(self.state):
            if self._polled.is_coming(source):
                return Heard(source)
        return None

    def _test_sends(self) -> None:
        left = []
        for buffers, posted in self._sends:
            if posted.test():
                self._pool.release(buffers)
            else:
                left.append((buffers, posted))
        self._sends = left

    def _finish(self) -> None:
        """Also leaves nothing posted: what was asked for and does not come any more, and what is not sent yet."""
        super()._finish()
        end = time.perf_counter() + WIND_UP_SECONDS
        while self._sends and not self.state.life.aborted and time.perf_counter() < end:
            self._test_sends()
            time.sleep(_POLL_SECONDS)
        for posted in (*self._pulls.values(), *(posted for _, posted in self._sends)):
            posted.abandon()

    # memory

    def _put(self, held: Held) -> None:
        """Replaces what is held. Called with the lock."""
        for model in _models(held):
            self._pool.hold(model)
        for model in _models(self.held):
            self._pool.release(model)
        self.held = held

    def _memory(self, wanted: Signature) -> Buffers:
        """Memory for what comes, which is held."""
        memory = self._pool.take(wanted)
        if memory is None:
            memory = jax.block_until_ready(tuple(jnp.zeros(size, dtype) for size, dtype in wanted))
            self._pool.hold(memory)
        return memory

    # global means

    def _contribution(self, handed: Buffers) -> Buffers:
        return self._mixing.contribute(self.held, handed, self._counting(), self._compute)

    def _counting(self) -> tuple[Share, ...]:
        """What has come and counts in the current round, in the order of the schedule."""
        return tuple(self._came[source] for source in self.machine.counting(self.state) if source in self._came)

    def _narrow(self, totals: Buffers, like: Buffers) -> Buffers:
        return self._staging.narrow(totals, like)

    def _put_mean(self, version: int, mean: Buffers) -> None:
        del version
        self._put(mixing.gathered(mean)._replace(weight=np.float32(1)))
        for share in self._came.values():
            self._pool.release(share.model)
        self._came = {}

    def _release(self) -> None:
        self.held, self._came, self._stepped = Held((), ()), {}, None
        self._pool.clear()
        self._compute.spare = []


def _models(held: Held) -> list[Buffers]:
    models = [held.model, held.taken, None if held.kept is None else held.kept.model]
    return [model for model in models if model is not None]
