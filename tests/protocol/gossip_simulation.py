"""Workers that gossip over a network in which messages between two of them stay in order: one immutable state of all.

Models are fractions: every worker starts at one of its own, and every step adds another, so that the sums of what all
hold and what is on its way, and the models in the end, show exactly what was mixed, and how often each step counts.
`moves` lists what can happen next, `apply` makes it happen and checks what can be seen in one step; `check_end` checks
a state in which nothing can happen any more, its models by the formulas of the papers.
"""

import functools
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

from protocol.simulation import require

from wagma_jax.protocol import messages
from wagma_jax.protocol.gossip import Begin, Gossip, Heard, Mix, Pull, Pulled, Push, State
from wagma_jax.protocol.messages import Rest
from wagma_jax.protocol.mixing import Held, gathered


class Trainer(NamedTuple):
    """plan: what is still to be done, "a" (average), "c" (consensus) and "m" (meet), then close; waits: for a round, or
    "rest".
    """

    plan: str
    counter: int = -1
    waits: int | str | None = None
    model: Any = None  # W', or what it has brought to its rest; else what it has taken
    rests: int = 0  # how often it has begun to rest
    closed: bool = False


class World(NamedTuple):
    engines: tuple[State, ...]
    helds: tuple[Held, ...]
    trainers: tuple[Trainer, ...]
    posts: tuple  # per worker: its trainer's events, and Begin, that its engine has not seen
    mail: tuple  # per pair: messages on their way
    data: tuple  # per pair: (round, share) on their way
    asked: tuple  # per worker: the round whose pushes are asked for, and from whom they have not come
    came: tuple  # per worker: {source: share} of the current round, as a tuple
    running: tuple  # per worker: the global mean or barrier that it is in, or None
    parts: frozenset = frozenset()  # (number of the rest, worker, part of the global mean)
    steps: frozenset = (
        frozenset()
    )  # (round, worker, step); (round, (rest, worker), what was brought to a mean after it)
    woken: tuple = ()  # per worker: the newest round when it last stood still with all, until its trainer knows
    died: bool = False
    failed: bool = False


_PLACES = {field: place for place, field in enumerate(World._fields)}


class Symbol:
    """A model: a fraction. Equal ones are one object, so that states are compared quickly."""

    __slots__ = ("value",)
    _known: ClassVar[dict] = {}

    def __new__(cls, value):
        if value not in cls._known:
            cls._known[value] = symbol = super().__new__(cls)
            symbol.value = Fraction(value)
        return cls._known[value]

    def __repr__(self):  # what sorts moves: not where it is in memory
        return str(self.value)

    def __add__(self, step):
        return Symbol(self.value + step)


@functools.cache
def compute(formula, *arguments):
    """What a formula makes of numbers and models."""
    return Symbol(formula(*(each.value if isinstance(each, Symbol) else each for each in arguments)))


class Cluster:
    """The rules of the game for one set of machines."""

    def __init__(
        self, schedule, plans, mixing, machine=Gossip, abort_at=None, dies_resting=None, dies_waiting=None,
        forgets=False, have_come=False,
    ):  # fmt: skip
        self.schedule, self.size, self.plans, self.mixing = schedule, schedule.num_workers, plans, mixing
        self.machines = [machine(schedule, worker, mixing.early, mixing.lag) for worker in range(self.size)]
        self.abort_at = abort_at  # this worker's trainer fails instead of its n-th call: (worker, n)
        self.dies_resting = dies_resting  # this worker's trainer may fail at any time of its n-th rest: (worker, n)
        self.dies_waiting = dies_waiting  # the same of its n-th call, one of "a"
        self.forgets = forgets  # whether an engine forgets that its trainer has taken an older model
        self.have_come = have_come
        self.most_on_way = 0
        self._steps = {}

    def start(self):
        models = [Symbol(number(worker, -1)) for worker in range(self.size)]
        helds = tuple(Held(model, model, Fraction(1)) for model in models)
        nothing = ((),) * self.size
        return World(
            engines=tuple(machine.start(0, self.have_come) for machine in self.machines),
            helds=helds,
            trainers=tuple(Trainer(plan, model=held.model) for plan, held in zip(self.plans, helds, strict=True)),
            posts=((Begin(),),) * self.size,
            mail=(nothing,) * self.size,
            data=(nothing,) * self.size,
            asked=((-1, frozenset()),) * self.size,
            came=nothing,
            running=(None,) * self.size,
            woken=(None,) * self.size,
        )

    def moves(self, world):
        moves = []
        for worker in range(self.size):
            trainer, engine = world.trainers[worker], world.engines[worker]
            if not trainer.closed and not engine.life.over and not engine.life.aborted:
                if self._is_ready(world, worker):
                    moves.append(("trainer", worker))
                if self._may_die(trainer, worker):
                    moves.append(("dies", worker))
            if world.running[worker] is not None:
                if self._all_in(world, worker):
                    moves.append(("completed", worker))
                continue
            if world.posts[worker]:
                moves.append(("post", worker))
            listens = self.machines[worker].listens_to(engine) if not world.posts[worker] else ()
            for source in range(self.size):
                if world.mail[source][worker]:
                    moves.append(("mail", source, worker))
                on_way, is_asked = len(world.data[source][worker]), source in world.asked[worker][1]
                if is_asked and on_way and not engine.life.over:
                    moves.append(("pulled", source, worker))
                if source in listens and on_way > is_asked:
                    moves.append(("heard", source, worker))
        return moves

    def check_quiet(self, world):
        """Where only trainers can move, whoever waits can find out for whose: one that has not arrived, nor rests."""
        if world.died:
            return
        ready = {worker for worker in range(self.size) if self._is_ready(world, worker)}
        for worker, trainer in enumerate(world.trainers):
            if worker in ready or trainer.closed:
                continue
            found, asked = set(), {worker}
            while asked - found:
                other = min(asked - found)
                found.add(other)
                asked |= set(self.machines[other].waits_for(world.engines[other]))
            require(found & ready, "worker {} waits for {}, none of which trains", worker, found)

    def apply(self, world, move):
        what, worker = move[0], move[-1]
        if what == "trainer":
            return self._trainer(world, worker)
        if what == "dies":
            return self._dies(world, worker)
        if what == "completed":
            return self._completed(world, worker)
        if what == "post":
            event, *others = world.posts[worker]
            return self._step(self._set(world, "posts", worker, tuple(others)), worker, event)
        source = move[1]
        if what == "mail":
            message, *others = world.mail[source][worker]
            world = self._put(world, "mail", source, worker, tuple(others))
            return self._step(world, worker, messages.Receive(source, message))
        if what == "heard":
            after = self._step(world, worker, Heard(source))
            require(after.engines[worker] != world.engines[worker], "worker {} listens for nothing", worker)
            return after
        (r, share), *others = world.data[source][worker]
        asked, sources = world.asked[worker]
        require(r == asked, "worker {} gets round {} of {} instead of {}", worker, r, source, asked)
        world = self._put(world, "data", source, worker, tuple(others))
        world = self._set(world, "asked", worker, (asked, sources - {source}))
        world = self._set(world, "came", worker, (*world.came[worker], (source, share)))
        return self._step(world, worker, Pulled(source))

    # the trainer

    def _is_ready(self, world, worker):
        trainer, engine = world.trainers[worker], world.engines[worker]
        if trainer.waits is None:
            return True
        if trainer.waits == "rest":
            return engine.life.resting == Rest.NONE and not world.posts[worker]
        return engine.round > trainer.waits

    def _may_die(self, trainer, worker):
        if trainer.waits == "rest":
            return self.dies_resting == (worker, trainer.rests)
        calls = len(self.plans[worker]) - len(trainer.plan)
        return trainer.waits is not None and self.dies_waiting == (worker, calls)

    def _trainer(self, world, worker):
        trainer, engine = world.trainers[worker], world.engines[worker]
        if trainer.waits is not None:
            return self._wake(world, worker)
        calls = len(self.plans[worker]) - len(trainer.plan)
        if self.abort_at == (worker, calls):
            return self._dies(world, worker)
        if not trainer.plan or trainer.plan[0] in "cm":
            rest = {"c": Rest.CONSENSUS, "m": Rest.MEET, "": Rest.CLOSE}[trainer.plan[:1]]
            brought = trainer.model
            if rest == Rest.CONSENSUS:
                brought += number(worker, calls)  # it may have gone on without the others
            trainer = trainer._replace(plan=trainer.plan[1:], waits="rest", rests=trainer.rests + 1, model=brought)
            world = self._set(world, "trainers", worker, trainer)
            return self._post(world, worker, messages.Retire(rest, (trainer.rests,)))
        target = self.machines[worker].target(engine, trainer.counter)
        step = number(worker, calls)
        world = world._replace(steps=world.steps | {(target, worker, step)})
        trainer = trainer._replace(plan=trainer.plan[1:], counter=target, waits=target, model=trainer.model + step)
        world = self._set(world, "trainers", worker, trainer)
        return self._post(world, worker, messages.Arrive(target))

    def _dies(self, world, worker):
        world = self._set(world, "trainers", worker, world.trainers[worker]._replace(closed=True))
        return self._post(world._replace(died=True), worker, messages.Abort("failed"))

    def _wake(self, world, worker):
        trainer, held = world.trainers[worker], world.helds[worker]
        if trainer.waits == "rest":
            require(all(t.rests >= trainer.rests for t in world.trainers), "a trainer leaves before all have come")
            newest, is_mean = world.woken[worker]
            require(newest >= trainer.counter, "rests never take a trainer back")
            model = held.model if is_mean else trainer.model
            require(held.taken is model, "the engine has {} instead of what the trainer has", held.taken)
            world = self._set(world, "woken", worker, None)
            return self._set(world, "trainers", worker, trainer._replace(waits=None, counter=newest, model=model))
        require(held.taken is held.model, "what a trainer takes is new")
        return self._set(world, "trainers", worker, trainer._replace(waits=None, model=held.model))

    # the engine

    def _step(self, world, worker, event):
        before = world.engines[worker]
        step = (worker, before, type(event), event)  # events without fields are equal
        if step not in self._steps:
            self._steps[step] = self.machines[worker].step(before, event)
        after, actions = self._steps[step]
        require(after.round >= before.round, "rounds grow")
        world = self._set(world, "engines", worker, after)
        for position, action in enumerate(actions):
            world = self._perform(world, worker, action, position == len(actions) - 1)
        return self._check_mass(world)

    def _perform(self, world, worker, action, is_last):
        if isinstance(action, messages.Send):
            require(action.dest != worker, "no message to oneself")
            return self._put(world, "mail", worker, action.dest, (*world.mail[worker][action.dest], action.message))
        if isinstance(action, messages.Fail):
            return world._replace(failed=True)
        if isinstance(action, Pull):
            require(not world.asked[worker][1], "worker {} asks while {} have not come", worker, world.asked[worker])
            require(action.sources, "asks for nothing")
            asked = action.round - self.mixing.lag
            return self._set(world, "asked", worker, (asked, frozenset(action.sources)))
        if isinstance(action, Push):
            return self._push(world, worker, action)
        if isinstance(action, Mix):
            return self._mix(world, worker, action)
        require(is_last, "a global mean, barrier or end is the last action")
        if isinstance(action, messages.Shutdown):
            return self._leave(world, worker)
        return self._enter(world, worker, action)

    def _stepped(self, world, worker, stepped):
        return world.trainers[worker].model if stepped else None

    def _push(self, world, worker, action):
        r, dests = action
        require(dests == self.schedule.sends_to(worker, r), "round {} goes to {}", r, dests)
        is_there = world.engines[worker].arrived >= r
        before, stepped = self._remembered(world.helds[worker]), self._stepped(world, worker, is_there)
        held, share = self.mixing.push(before, stepped, len(dests) + 1, compute)
        world = self._set(world, "helds", worker, held)
        for dest in dests:
            on_way = (*world.data[worker][dest], (r, share))
            self.most_on_way = max(self.most_on_way, len(on_way))
            world = self._put(world, "data", worker, dest, on_way)
        return world

    def _mix(self, world, worker, action):
        r, sources, stepped = action
        require(any(trainer.counter >= r for trainer in world.trainers), "no trainer has arrived at round {}", r)
        require(stepped or world.trainers[worker].waits == "rest", "worker {} trains, but has no step", worker)
        came = dict(world.came[worker])
        require(set(came) == set(sources), "round {} has the pushes of {}, not of {}", r, set(came), sources)
        shares = [came[source] for source in sources]
        before, own = self._remembered(world.helds[worker]), self._stepped(world, worker, stepped)
        held = self.mixing.mix(before, own, shares, len(sources) + 1, compute)
        world = self._set(world, "helds", worker, held._replace(kept=None))
        return self._set(world, "came", worker, ())

    def _remembered(self, held):
        return held._replace(taken=held.model) if self.forgets else held

    def _check_mass(self, world):
        """Push-sum: what all hold, and what is on its way, are all models, steps and weights."""
        if self.mixing.early or world.died or any(world.running):
            return world
        model, weight = Fraction(0), Fraction(0)
        for worker in range(self.size):
            held = world.helds[worker]
            came = [share for _, share in world.came[worker]]
            on_way = [share for source in range(self.size) for _, share in world.data[source][worker]]
            mine = [held.kept] if held.kept is not None else []
            model += sum((share.model.value for share in (*came, *on_way, *mine)), Fraction(0))
            weight += sum((share.weight for share in (*came, *on_way, *mine)), Fraction(0))
            if held.kept is None:
                model += held.model.value * held.weight
                weight += held.weight
            trainer, engine = world.trainers[worker], world.engines[worker]
            if held.kept is None and isinstance(trainer.waits, int) and engine.round <= trainer.waits:
                model += trainer.model.value - held.taken.value  # its step is not in anything yet
        require(weight == self.size, "the weights add up to {}", weight)
        given = sum(step for _, _, step in world.steps) + sum(number(worker, -1) for worker in range(self.size))
        require(model == given, "the models add up to {} instead of {}", model, given)
        return world

    def _enter(self, world, worker, action):
        trainer, held = world.trainers[worker], world.helds[worker]
        on_way = [source for source in range(self.size) if world.data[source][worker]]
        require(not on_way, "worker {} stands still while pushes of {} are on their way", worker, on_way)
        part = None
        if isinstance(action, messages.GlobalMean):
            part = self.mixing.contribute(
                self._remembered(held), trainer.model, [share for _, share in world.came[worker]], compute
            )
            world = self._set(world, "came", worker, ())
            number = trainer.rests, worker
            brought = world.engines[worker].round - 1, number, trainer.model.value - held.taken.value
            world = world._replace(steps=world.steps | {brought})
        else:
            require(action.tally == (sum(t.rests for t in world.trainers),), "the sums {}", action.tally)
        rests = trainer.rests
        require(all(t.rests >= rests for t in world.trainers), "all trainers rest")
        rounds = {engine.round for engine, r in zip(world.engines, world.running, strict=True) if r is not None}
        require(rounds <= {world.engines[worker].round}, "not all stand at the same round: {}", rounds)
        world = self._set(world, "running", worker, (rests, part is not None))
        return world._replace(parts=world.parts | {(rests, worker, part)})

    def _all_in(self, world, worker):
        rests, _ = world.running[worker]
        return sum(of == rests for of, _, _ in world.parts) == self.size

    def _completed(self, world, worker):
        rests, is_mean = world.running[worker]
        newest = world.engines[worker].round - 1
        if is_mean:
            mean = Symbol(sum(part.value for of, _, part in world.parts if of == rests) / self.size)
            world = self._set(world, "helds", worker, gathered(mean)._replace(weight=Fraction(1)))
        world = self._set(world, "woken", worker, (newest, is_mean))
        world = self._set(world, "running", worker, None)
        if all(running is None or running[0] != rests for running in world.running):
            world = world._replace(parts=frozenset(part for part in world.parts if part[0] != rests))
        return self._step(world, worker, messages.Completed())

    def _leave(self, world, worker):
        engine = world.engines[worker]
        alone = any(t.waits != "rest" and not t.closed for t in world.trainers)
        require(engine.life.aborted or not alone, "an engine leaves while one trains")
        if not engine.life.aborted:
            on_way = [source for source in range(self.size) if world.data[source][worker]]
            require(not on_way, "worker {} ends while pushes of {} are on their way", worker, on_way)
        return self._set(world, "trainers", worker, world.trainers[worker]._replace(closed=True))

    # helpers

    def _post(self, world, worker, event):
        return self._set(world, "posts", worker, (*world.posts[worker], event))

    def _set(self, world, field, worker, value):
        place = _PLACES[field]
        values = world[place]
        return World._make((*world[:place], (*values[:worker], value, *values[worker + 1 :]), *world[place + 1 :]))

    def _put(self, world, field, source, dest, value):
        row = getattr(world, field)[source]
        return self._set(world, field, source, (*row[:dest], value, *row[dest + 1 :]))

    # the end

    def check_end(self, world):
        failed = world.died and self.size > 1
        require(all(engine.life.over for engine in world.engines), "not all are at their end: {}", self._stuck(world))
        unseen = failed and self.dies_resting is not None and not world.trainers[self.dies_resting[0]].plan
        require(world.failed == failed or unseen, "a failure is seen, and only where there is one")
        require(not any(world.running), "a global mean or barrier is never over: {}", world.running)
        if world.died:
            return
        require(all(trainer.closed for trainer in world.trainers), "all trainers are done")
        rounds = {engine.round for engine in world.engines}
        require(len(rounds) == 1, "all end at the same round: {}", rounds)
        expected = trajectory(self.schedule, self.mixing, world.steps, rounds.pop())
        require([held.model.value for held in world.helds] == expected, "the models are not those of the paper")

    def _stuck(self, world):
        return [
            (e.round, e.life.resting.name, e.exchanging, t.waits)
            for e, t in zip(world.engines, world.trainers, strict=True)
        ]


def number(worker, call):
    """A fraction of its own for each worker and call: no two sums of some of them are equal by chance."""
    return Fraction((worker * 7919 + call * 104729 + 15485863) ** 3 % 1000003)


def trajectory(schedule, mixing, steps, rounds):
    """The models in the end, by the papers: all workers in lockstep, with the steps as they were taken."""
    size = schedule.num_workers
    x, w = [number(worker, -1) for worker in range(size)], [Fraction(1)] * size
    step = {(t, worker): value for t, worker, value in steps}
    on_way = []
    for t in range(-1, rounds):
        if t >= 0:
            moved = [step.get((t, worker), Fraction(0)) for worker in range(size)]
            parts = schedule.group_size
            if mixing.early:
                x = [sum((x[j] for j in schedule.receives_from(i, t)), x[i]) / parts + moved[i] for i in range(size)]
            else:
                x = [(x[i] + moved[i]) / parts for i in range(size)]
                w = [weight / parts for weight in w]
                sent = [(dest, x[i], w[i]) for i in range(size) for dest in schedule.sends_to(i, t)]
                counts, on_way = (on_way, sent) if mixing.lag else (sent, [])
                for dest, model, weight in counts:
                    x[dest] += model
                    w[dest] += weight
        for rest in sorted({number[0] for of, number in step if of == t and isinstance(number, tuple)}):
            total = sum(x) + sum(step[t, (rest, worker)] for worker in range(size))
            total += sum(model for _, model, _ in on_way)
            x, w, on_way = [total / size] * size, [Fraction(1)] * size, []
    return [model / weight for model, weight in zip(x, w, strict=True)]
