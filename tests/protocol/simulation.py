"""Workers that run the protocol over a network that delivers messages in any order: one immutable state of all.

Models are symbols: ("W", worker, round) is a publication, a sum is the set of the contributions that it is made of, and
("mean", k) a global mean. `moves` lists what can happen next, `apply` makes it happen and checks each invariant that
can be seen in one step; `check_end` checks a state in which nothing can happen any more.
"""

import collections
import functools
from typing import NamedTuple

from wagma_jax.protocol import messages
from wagma_jax.protocol.messages import Kind, Message, Rest
from wagma_jax.protocol.plan import GroupPlan
from wagma_jax.protocol.rounds import Rounds, State
from wagma_jax.protocol.rules import GroupSum, Inbox, Merge, Outbox, global_mean


class Violation(AssertionError):
    """An invariant does not hold."""


def require(condition, text, *values):
    """Raises if an invariant does not hold; ``values`` are put into the text, which costs time."""
    if not condition:
        raise Violation(text.format(*values))


class Trainer(NamedTuple):
    """plan: what is still to be done, "a" (average), "c" (consensus) and "m" (meet), then close; waits: for a round, or
    "rest".
    """

    plan: str
    counter: int = -1
    waits: int | str | None = None
    base: int = -1  # the newest round whose result the model contains
    model: tuple = ("W", -1)
    rests: int = 0  # how often it has begun to rest
    closed: bool = False
    died: bool = False


class World(NamedTuple):
    engines: tuple[State, ...]
    outboxes: tuple[Outbox, ...]
    inboxes: tuple[Inbox, ...]
    trainers: tuple[Trainer, ...]
    network: frozenset = frozenset()  # (source, dest, event)
    running: tuple = ()  # per worker: (round, group, version contributed) of the exchange that it is in, or None
    contributions: frozenset = frozenset()  # ((round, group), worker, version) of exchanges not over at all members
    sent: frozenset = frozenset()  # (source, dest, message) about rounds that the source has not completed
    gathered: tuple = ()  # per worker: the newest round when it last stood still with all, until its trainer knows
    steps: tuple = ()  # per worker, where contributions are weighted: see weights.py
    died: bool = False  # a trainer has failed
    failed: bool = False  # somebody has heard of it


_PLACES = {field: place for place, field in enumerate(World._fields)}


class Cluster:
    """The rules of the game for one set of machines."""

    def __init__(
        self,
        schedule,
        plans,
        quorum=1,
        clock="step",
        machine=Rounds,
        abort_at=None,
        dies_resting=None,
        dies_waiting=None,
        die=(),
        mean=global_mean,
        inbox=Inbox,
        barrier=True,
        plan=None,
        patience=False,
    ):
        self.schedule = schedule
        self.size = schedule.num_workers
        self.plan = GroupPlan(schedule, quorum) if plan is None else plan
        self.machines = [machine(self.plan, worker, clock) for worker in range(self.size)]
        self._steps = {}  # many interleavings have the same steps
        self.plans = plans
        self.clock, self.quorum = clock, quorum
        self.abort_at = abort_at  # this worker's trainer fails instead of its n-th call: (worker, n)
        self.dies_resting = dies_resting  # this worker's trainer may fail at any time of its n-th rest: (worker, n)
        self.dies_waiting = dies_waiting  # the same of its n-th call, one of "a"
        self.die = die  # these workers' trainers may fail at any time inside of any call
        self.patience = patience  # whether a trainer may have enough of waiting for a quorum, at any time
        self.barrier = barrier  # whether nobody leaves a rest before all have entered
        self.global_mean = mean
        self.inbox = inbox
        # with all arrivals asked for, and equally many calls, nobody is ever late
        waits = quorum >= schedule.group_size and not patience
        self.synchronous = clock == "step" and waits and len(set(plans)) == 1

    def start(self):
        return World(
            engines=(State(),) * self.size,
            **self.records(),
            trainers=tuple(Trainer(plan) for plan in self.plans),
            running=(None,) * self.size,
            gathered=(None,) * self.size,
        )

    def records(self):
        """What the workers have published, and what they have not taken, at the start."""
        return {
            "outboxes": tuple(Outbox(-1, ("W", worker, -1)) for worker in range(self.size)),
            "inboxes": (self.inbox(),) * self.size,
        }

    def moves(self, world):
        moves = []
        for worker in range(self.size):
            trainer, engine = world.trainers[worker], world.engines[worker]
            if not trainer.closed and not engine.life.over and not engine.life.aborted:
                if self._is_ready(world, worker):
                    moves.append(("trainer", worker))
                if self._may_die(trainer, worker):
                    moves.append(("dies", worker))
                if self.patience and self._may_expire(worker, trainer, engine):
                    moves.append(("expires", worker))
            if world.running[worker] is not None and self._all_in(world, worker):
                moves.append(("completed", worker))
        ways = collections.defaultdict(list)
        for source, dest, event in world.network:
            if world.running[dest] is None:
                ways[source, dest].append(event)
        for (source, dest), events in ways.items():
            for event in events:
                if len(events) == 1 or not self._overtakes(events, event, source == dest):
                    moves.append(("deliver", source, dest, event))
        return moves

    def _is_ready(self, world, worker):
        trainer, engine = world.trainers[worker], world.engines[worker]
        if trainer.waits is None:
            return True
        if trainer.waits == "rest":
            return engine.life.resting == Rest.NONE and not self._pending(world, worker)
        return engine.round > trainer.waits and self._can_take(world, worker, trainer.waits)

    def _may_expire(self, worker, trainer, engine):
        """Whether the engine may find that its trainer has waited for a quorum for long enough."""
        return trainer.waits == engine.round and self.machines[worker].is_patient(engine)

    def _can_take(self, world, worker, t):
        return self.schedule.is_sync(t) or not world.inboxes[worker].is_replaced

    def _may_die(self, trainer, worker):
        """At any time inside of a call, also when what it waits for has come."""
        if worker in self.die and trainer.waits is not None:
            return True
        if trainer.waits == "rest":
            return self.dies_resting == (worker, trainer.rests)
        calls = len(self.plans[worker]) - len(trainer.plan)
        return trainer.waits is not None and self.dies_waiting == (worker, calls)

    def _overtakes(self, events, event, is_own):
        """A trainer's events come in order; of messages only an ABORT must not overtake what its sender said before."""
        if is_own:
            return any(_place(other) < _place(event) for other in events)
        if event.message.kind != Kind.ABORT:
            return False
        before = (other.message for other in events if other != event)
        return any(message.kind != Kind.ABORT or not message.final for message in before)

    def apply(self, world, move):
        if move[0] == "deliver":
            _, source, dest, event = move
            world = world._replace(network=world.network - {(source, dest, event)})
            return self._step(world, dest, event)
        if move[0] == "completed":
            return self._completed(world, move[1])
        if move[0] == "dies":
            return self._dies(world, move[1])
        if move[0] == "expires":
            worker = move[1]
            return self._step(world, worker, messages.Expire(world.engines[worker].round))
        return self._trainer(world, move[1])

    def check_quiet(self, world):
        """Where only trainers can move: whoever is to wait for one of them must have asked for it."""
        if self.quorum > 1 and not self.patience:
            return
        for worker, (trainer, engine) in enumerate(zip(world.trainers, world.engines, strict=True)):
            t = trainer.waits
            waits = isinstance(t, int) and engine.round <= t and not engine.life.over and not self.schedule.is_sync(t)
            require(not waits, "worker {} waits at round {} for another's trainer", worker, t)

    # the trainer

    def _trainer(self, world, worker):
        trainer, engine = world.trainers[worker], world.engines[worker]
        if trainer.waits is not None:
            return self._wake(world, worker)
        if self.abort_at is not None and self.abort_at == (worker, len(self.plans[worker]) - len(trainer.plan)):
            return self._dies(world, worker)
        if not trainer.plan or trainer.plan[0] in "cm":
            rest = {"c": Rest.CONSENSUS, "m": Rest.MEET, "": Rest.CLOSE}[trainer.plan[:1]]
            trainer = trainer._replace(plan=trainer.plan[1:], waits="rest", rests=trainer.rests + 1)
            world = self._set(world, "trainers", worker, trainer)
            tally = self._tally(worker, trainer.rests) if rest == Rest.MEET else ()
            return self._post(world, worker, messages.Retire(rest, tally))
        target = self.machines[worker].target(engine, trainer.counter)
        require(target > trainer.counter, "a trainer's rounds grow")
        if self.clock == "round":
            sync = next((k for k in range(engine.round, target) if self.schedule.is_sync(k)), None)
            require(sync is None, "a jump passes the open sync round {}", sync)
        world, model = self._publish(world, worker, target)
        trainer = trainer._replace(plan=trainer.plan[1:], counter=target, waits=target, model=model)
        world = self._set(world, "trainers", worker, trainer)
        arrival = messages.Arrive(target, self._tally(worker, target + 1))
        passed = self.machines[worker].passed_alone(engine, target)
        require(passed is None or (passed, []) == self.machines[worker].step(engine, arrival), "the short way is right")
        return self._post(world, worker, arrival)

    def _publish(self, world, worker, target):
        """The world after a model was published, and the trainer's model."""
        model = ("W", worker, target)
        outbox = world.outboxes[worker]
        require(target > outbox.version, "versions never decrease, and are told apart")
        return self._set(world, "outboxes", worker, outbox.publish(target, model)), model

    def _dies(self, world, worker):
        world = self._set(world, "trainers", worker, world.trainers[worker]._replace(closed=True, died=True))
        return self._post(world._replace(died=True), worker, messages.Abort("failed"))

    def _tally(self, worker, number):
        """In sums of these it can be seen whose are in them, and that each is there once and of the right call."""
        return (0,) * worker + (number,)

    def _check_tally(self, tally, numbers):
        padded = tally + (0,) * (self.size - len(tally))
        require(padded == tuple(numbers), "the sums {} instead of {}", padded, tuple(numbers))

    def _wake(self, world, worker):
        trainer, engine = world.trainers[worker], world.engines[worker]
        if trainer.waits == "rest":
            require(all(t.rests >= trainer.rests for t in world.trainers), "a trainer leaves before all have come")
            newest, is_mean = world.gathered[worker]
            base = newest if is_mean else trainer.base
            require(newest >= trainer.counter, "rests never take a trainer back")
            world = self._set(world, "gathered", worker, None)
            return self._set(world, "trainers", worker, trainer._replace(waits=None, counter=newest, base=base))
        counter = trainer.counter if self.clock == "step" else max(trainer.counter, engine.round - 1)
        return self._take(world, worker, counter)

    def _take(self, world, worker, counter):
        """The trainer takes what its round has brought, and goes on with this counter."""
        trainer, engine, outbox = world.trainers[worker], world.engines[worker], world.outboxes[worker]
        newest = self._summed(worker, engine.round - 1)
        if self.schedule.is_sync(trainer.waits):
            k = trainer.waits
            require(
                outbox[:2] == (k, ("mean", k)),
                "after sync round {} worker {} takes {}, not the mean",
                k,
                worker,
                outbox,
            )
            trainer = trainer._replace(waits=None, counter=counter, base=k, model=outbox.model)
            return self._set(world, "trainers", worker, trainer)
        version = trainer.model[2]
        inbox, merge, taken = world.inboxes[worker].collect(version)
        world = self._set(world, "inboxes", worker, inbox)
        base = trainer.base
        if taken is not None:
            require(taken.round > base, "the sum of round {} enters a model of round {} (again)", taken.round, base)
            base = taken.round
            contained = (worker, version) in taken.total
            require(contained == (merge == Merge.SUM), "{} of W' = {} with {}", merge, version, taken)
            require(not taken.is_mean or merge == Merge.SUM, "a mean cannot be merged as a sum")
        else:
            require(base >= newest, "the sum of round {} is there, but not merged: {}", newest, base)
        trainer = trainer._replace(waits=None, counter=counter, base=base)
        return self._set(world, "trainers", worker, trainer)

    def _summed(self, worker, newest):
        """The newest round up to this one of which there is a sum: since the last global mean, and not alone."""
        while newest >= 0 and not self.schedule.is_sync(newest):
            if len(self.schedule.group_of(worker, newest)) > 1:
                return newest
            newest -= 1
        return -1

    # the engine

    def _step(self, world, worker, event):
        before = world.engines[worker]
        step = (worker, before, event)
        if step not in self._steps:
            self._steps[step] = self.machines[worker].step(before, event)
        after, actions = self._steps[step]
        require(after.round >= before.round, "rounds grow")
        world = self._set(world, "engines", worker, after)
        for position, action in enumerate(actions):
            if isinstance(action, messages.Send):
                world = self._send(world, worker, action)
                continue
            if isinstance(action, messages.Fail):
                world = world._replace(failed=True)
                continue
            require(position == len(actions) - 1, "an exchange or an end is the last action")
            if isinstance(action, messages.Exchange):
                world = self._enter(world, worker, action)
            elif isinstance(action, messages.GlobalMean | messages.Barrier):
                world = self._gather(world, worker, action)
            else:
                require(action == messages.Shutdown(), "unknown action {}", action)
                alone = any(t.waits != "rest" and not t.closed for t in world.trainers)
                require(after.life.aborted or not alone, "an engine leaves while one trains")
                trainer = world.trainers[worker]._replace(closed=True)
                world = self._set(world, "trainers", worker, trainer)
        return world

    def _gather(self, world, worker, action):
        rest = Rest.CONSENSUS if isinstance(action, messages.GlobalMean) else Rest.MEET
        engine = world.engines[worker]
        left = [kind for r, kind, _ in engine.facts.entries if r >= engine.round and kind in (Kind.ARRIVED, Kind.FORCE)]
        require(not left, "worker {} is woken while a round is activated", worker)
        require(all(engine.life.resting in (rest, Rest.NONE) for engine in world.engines), "all rest alike")
        rests = world.trainers[worker].rests
        require(all(trainer.rests >= rests for trainer in world.trainers), "all trainers rest")
        if rest == Rest.MEET:
            self._check_tally(action.tally, [rests] * self.size)
        return self._begin(world, worker, (rest, rests), tuple(range(self.size)), engine.round)

    def _enter(self, world, worker, action):
        r, group, tally = action
        engine = world.engines[worker]
        require(r == engine.round, "rounds are executed in order")
        sync = self.schedule.is_sync(r)
        require(
            group == (tuple(range(self.size)) if sync else self.schedule.group_of(worker, r)), "the group of the round"
        )
        require(sync or len(group) > 1, "worker {} exchanges with itself", worker)
        version = world.outboxes[worker].version
        require(version <= r, "nobody contributes anything of the future")
        require(
            version == r or not self.synchronous, "worker {} is late at round {} although all are waited for", worker, r
        )
        require(sync or not tally, "tallies are those of sync rounds")
        if sync:
            self._check_tally(tally, [r + 1 if other.arrived == r else 0 for other in world.engines])
            rests = engine.life.resting != Rest.NONE
            require(version == r or rests, "worker {} takes part in sync round {} with {}", worker, r, version)
        for peer in group:
            at = world.engines[peer]
            require(
                at.round == r or (at.round > r and peer in self._members(world, (r, group))), "{} is not at {}", peer, r
            )
            after_failure = bool(at.life.aborted)
            activated = sync or self.machines[peer]._activated(at, r) or world.running[peer] is not None or at.round > r
            coming = any(
                dest == peer and isinstance(event, messages.Receive) and event.message.round == r
                for _, dest, event in world.network
            )
            require(
                activated or coming or after_failure,
                "worker {} would wait inside round {} for the trainer of {}",
                worker,
                r,
                peer,
            )
            if sync and not after_failure:
                served = at.round > r or self.machines[peer]._served(at, r)
                require(served, "worker {} would wait inside sync round {} for {}", worker, r, peer)
        world, contribution = self._contribute(world, worker, r)
        return self._begin(world, worker, r, group, contribution)

    def _contribute(self, world, worker, r):
        """The world when the worker enters round r, and what it contributes: a version."""
        version, sync = world.outboxes[worker].version, self.schedule.is_sync(r)
        if not sync and self.schedule.sync_period is not None:
            require(r - version <= self.schedule.sync_period - 1, "staleness {} at round {}", r - version, r)
        if not sync and version != r:  # the result is a sum, for which that of an untaken one may be overwritten
            world = self._set(world, "inboxes", worker, world.inboxes[worker].reuse()[0])
        return world, version

    def _begin(self, world, worker, r, group, version):
        require(world.running[worker] is None, "one exchange at a time")
        world = self._set(world, "running", worker, (r, group, version))
        return world._replace(contributions=world.contributions | {((r, group), worker, version)})

    def _members(self, world, exchange):
        return {worker for of, worker, _ in world.contributions if of == exchange}

    def _all_in(self, world, worker):
        r, group, _ = world.running[worker]
        if isinstance(r, tuple) and not self.barrier:
            return True
        return self._members(world, (r, group)) == set(group)

    def _completed(self, world, worker):
        r, group, version = world.running[worker]
        made_of = frozenset((w, v) for of, w, v in world.contributions if of == (r, group))
        if isinstance(r, tuple):
            require(len({round_ for _, round_ in made_of}) == 1, "not all stand at the same round: {}", made_of)
            newest, is_mean = world.engines[worker].round - 1, r[0] == Rest.CONSENSUS
            if is_mean:
                world = self._put_mean(world, worker, newest, ("mean", r))
            world = self._set(world, "gathered", worker, (newest, is_mean))
        else:
            world = self._put(world, worker, r, group, version, made_of)
        world = self._set(world, "running", worker, None)
        if all(world.running[peer] is None or world.running[peer][:2] != (r, group) for peer in group):
            remaining = frozenset(c for c in world.contributions if c[0] != (r, group))
            world = world._replace(contributions=remaining)
        return self._step(self._forget(world, worker, r), worker, messages.Completed())

    def _put(self, world, worker, r, group, version, made_of):
        """The world after a round has brought its result."""
        if self.schedule.is_sync(r):
            return self._put_mean(world, worker, r, ("mean", r))
        is_mean = version == r
        inbox = world.inboxes[worker].put(GroupSum(r, version, len(group), made_of, is_mean))
        return self._set(world, "inboxes", worker, inbox)

    def _put_mean(self, world, worker, version, mean):
        outbox, inbox = self.global_mean(world.outboxes[worker], world.inboxes[worker], version, mean)
        return self._set(self._set(world, "outboxes", worker, outbox), "inboxes", worker, inbox)

    def _forget(self, world, worker, r):
        about = {
            entry
            for entry in world.sent
            if entry[0] == worker
            and ((entry[2].kind in (Kind.REST, Kind.WAKE)) if isinstance(r, tuple) else entry[2].round == r)
        }
        activations = [entry for entry in about if entry[2].kind in (Kind.ARRIVED, Kind.FORCE, Kind.READY)]
        most = 2 * (self.schedule.group_size - 1)
        require(isinstance(r, tuple) or self.schedule.is_sync(r) or len(activations) <= most, "{}", activations)
        return world._replace(sent=world.sent - about)

    # messages

    def _send(self, world, source, action):
        dest, message = action
        require(dest != source, "no message to oneself")
        require((source, dest, message) not in world.sent, "{} is sent to {} again", message, dest)
        world = world._replace(sent=world.sent | {(source, dest, message)})
        return world._replace(network=world.network | {(source, dest, messages.Receive(source, message))})

    def _post(self, world, worker, event):
        return world._replace(network=world.network | {(worker, worker, event)})

    def _pending(self, world, worker):
        return any(source == dest == worker for source, dest, _ in world.network)

    def _set(self, world, field, worker, value):
        place = _PLACES[field]  # as world._replace, whose time is most of an exploration's
        values = world[place]
        return World._make((*world[:place], (*values[:worker], value, *values[worker + 1 :]), *world[place + 1 :]))

    # the end

    def check_end(self, world):
        require(all(engine.life.over for engine in world.engines), "not all are at their end: {}", self._stuck(world))
        # all may have closed, or failed as well, before an engine hears of a trainer that has failed inside of close()
        failures = [trainer for trainer in world.trainers if trainer.died]
        unheard = (
            all(trainer.waits == "rest" and not trainer.plan for trainer in failures) or len(failures) == self.size
        )
        require(
            world.failed == world.died or (world.died and unheard), "a failure is seen, and only where there is one"
        )
        require(not any(world.running), "an exchange is never over: {}", world.running)
        if not world.died:
            require(all(trainer.closed for trainer in world.trainers), "all trainers are done")
            require(not world.contributions, "every exchange is over")

    def _stuck(self, world):
        return [
            (e.round, e.life.resting.name, e.exchanging, t.waits)
            for e, t in zip(world.engines, world.trainers, strict=True)
        ]


def _place(event):
    """The place of a trainer's event among those that it may have posted and its engine not seen."""
    kinds = (messages.Arrive, messages.Retire, messages.Abort)
    return kinds.index(type(event)), event.round if isinstance(event, messages.Arrive) else 0


def explore(cluster, limit=2_000_000):
    """Every state that can be reached; their number."""
    start = cluster.start()
    seen, stack = {start}, [start]
    while stack:
        world = stack.pop()
        moves = cluster.moves(world)
        if not moves:
            cluster.check_end(world)
        if all(move[0] == "trainer" for move in moves):
            cluster.check_quiet(world)
        for move in moves:
            after = cluster.apply(world, move)
            if after not in seen:
                seen.add(after)
                require(len(seen) <= limit, "more than {} states", limit)
                stack.append(after)
    return len(seen)


_text = functools.lru_cache(10_000)(repr)  # a message is in the network for many moves


def walk(cluster, choose, limit=20_000):
    """One run, its moves chosen by choose(number of moves); the number of moves made."""
    world = cluster.start()
    for count in range(limit):
        moves = sorted(cluster.moves(world), key=_text)
        if not moves:
            cluster.check_end(world)
            return count
        if all(move[0] == "trainer" for move in moves):
            cluster.check_quiet(world)
        world = cluster.apply(world, moves[choose(len(moves))])
    raise Violation(f"no end after {limit} moves")


__all__ = ["Cluster", "Inbox", "Message", "Violation", "World", "explore", "global_mean", "walk"]
