"""Workers that average in pairs over a network that delivers in any order: one immutable state of all.

Models are exact fractions, in which the initial models and the steps take decimal places of their own, so that the sum
over all workers tells what is in it. `moves` lists what can happen next, `apply` makes it happen and checks each
invariant that can be seen in one step; `check_end` checks a state in which nothing can happen any more.
"""

from fractions import Fraction
from typing import NamedTuple

from protocol.simulation import Violation, require

from wagma_jax.protocol import messages, pairwise
from wagma_jax.protocol.live import Live
from wagma_jax.protocol.messages import Kind, Rest
from wagma_jax.protocol.pairwise import Pairwise, Phase, State

RESTS = {"c": Rest.CONSENSUS, "m": Rest.MEET, "": Rest.CLOSE}


class Exact:
    """The arithmetic of models, without rounding."""

    def moved(self, own, live, base):
        return own + (live - base)

    def mean(self, live, received):
        return (live + received) / 2

    def merged(self, received, live, sent):
        return (sent + received) / 2 + (live - sent)


EXACT = Exact()


class Trainer(NamedTuple):
    """plan: what is still to be done, "a" (average), "c" (consensus) and "m" (meet), then close."""

    plan: str
    model: Fraction  # what it was given last
    counter: int = -1
    rests: int = 0  # how often it has begun to rest
    resting: bool = False
    steps: int = 0
    closed: bool = False


class World(NamedTuple):
    engines: tuple
    lives: tuple
    trainers: tuple
    network: frozenset = frozenset()  # (source, dest, event)
    flying: frozenset = frozenset()  # models on the way: (source, dest, number, round, model)
    gathered: tuple = ()  # per worker: (rest, rests) of the global mean or barrier that it is in, or None
    entered: frozenset = frozenset()  # ((rest, rests), worker, round, model) of those not over at all workers
    newest: tuple = ()  # per worker: the newest round when all last stood still, until its trainer knows
    expected: Fraction = Fraction(0)  # the sum of the initial models and of all steps
    died: bool = False
    failed: bool = False


class Cluster:
    """The rules of the game for one set of machines.

    Args:
        schedule: Who averages with whom.
        plans: Of each trainer.
        clock: As for the machine.
        eager: Whether a send may be over before its receive, as MPI's of small messages.
        machine: The machine's class.
        live: The live model's class.
        dies: This worker's trainer fails in place of its n-th call, or at any time of the call: (worker, n, inside).
    """

    def __init__(self, schedule, plans, clock="step", eager=True, machine=Pairwise, live=Live, dies=None):
        self.size = schedule.num_workers
        self.schedule, self.plans, self.clock, self.eager, self.dies = schedule, plans, clock, eager, dies
        self.machines = [machine(schedule, worker, clock) for worker in range(self.size)]
        self.live = live
        self._steps = {}  # many interleavings have the same steps

    def start(self):
        models = [Fraction(10**worker) for worker in range(self.size)]
        return World(
            engines=(State(),) * self.size,
            lives=tuple(self.live(model, model) for model in models),
            trainers=tuple(map(Trainer, self.plans, models)),
            gathered=(None,) * self.size,
            newest=(None,) * self.size,
            expected=sum(models),
        )

    def moves(self, world):
        moves = []
        for worker in range(self.size):
            trainer, engine = world.trainers[worker], world.engines[worker]
            if not trainer.closed and not engine.life.over and not engine.life.aborted:
                if not trainer.resting or world.newest[worker] is not None:
                    moves.append(("trainer", worker))
                if trainer.resting and self.dies == (worker, len(self.plans[worker]) - len(trainer.plan), True):
                    moves.append(("dies", worker))
            if world.gathered[worker] is not None:
                if {who for what, who, *_ in world.entered if what == world.gathered[worker]} == set(range(self.size)):
                    moves.append(("completed", worker))
            elif engine.swap is not None:
                moves += self._transfers(world, worker, engine.swap)
        for source, dest, event in world.network:
            if world.gathered[dest] is None and not self._overtakes(world, source, dest, event):
                moves.append(("deliver", source, dest, event))
        return moves

    def _transfers(self, world, worker, swap):
        """What can come for a swap in progress, or arrive."""
        if swap.phase == Phase.ANSWERED:
            arrived = not any(entry[:2] == (worker, swap.partner) for entry in world.flying)
            return [("gone", worker)] if self.eager or arrived else []
        sent = any(entry[:2] == (worker, swap.partner) for entry in world.flying)
        return [
            ("came", worker, entry)
            for entry in world.flying
            if entry[:2] == (swap.partner, worker) and (not sent or swap.phase == Phase.ACCEPTED)
        ]

    def _overtakes(self, world, source, dest, event):
        """A trainer's events come in order; of messages only an ABORT must not overtake what its sender said before."""
        others = [entry[2] for entry in world.network if entry[:2] == (source, dest) and entry[2] != event]
        if source == dest:
            return any(_place(other) < _place(event) for other in others)
        return event.message.kind == Kind.ABORT and any(other.message.kind != Kind.ABORT for other in others)

    def apply(self, world, move):
        kind, worker, *rest = move
        if kind == "deliver":
            dest, event = rest
            return self._step(world._replace(network=world.network - {(worker, dest, event)}), dest, event)
        if kind == "completed":
            return self._completed(world, worker)
        if kind == "dies":
            return self._dies(world, worker)
        if kind == "gone":
            return self._step(world, worker, pairwise.Gone())
        if kind == "came":
            (entry,) = rest
            _, _, number, round_, model = entry
            world = world._replace(flying=world.flying - {entry})
            return self._step(world, worker, pairwise.Came(number, round_), model)
        return self._trainer(world, worker)

    def check_quiet(self, world):
        """Where only trainers can move nobody is in a swap: none needs a trainer."""
        swaps = [engine.swap for engine in world.engines if not engine.life.aborted]
        require(not any(swaps) or world.died, "swaps wait for trainers: {}", swaps)

    # the trainer

    def _trainer(self, world, worker):
        trainer, engine, live = world.trainers[worker], world.engines[worker], world.lives[worker]
        if trainer.resting:
            newest = world.newest[worker]
            require(newest >= trainer.counter, "rests never take a trainer back")
            world = self._set(world, "newest", worker, None)
            trainer = trainer._replace(resting=False, counter=newest, model=live.taken)
            return self._set(world, "trainers", worker, trainer)
        if self.dies == (worker, len(self.plans[worker]) - len(trainer.plan), False):
            return self._dies(world, worker)
        if trainer.plan[:1] in RESTS:
            rests = trainer.rests + 1
            rest = RESTS[trainer.plan[:1]]
            trainer = trainer._replace(plan=trainer.plan[1:], resting=True, rests=rests)
            world = self._set(world, "trainers", worker, trainer)
            return self._post(world, worker, messages.Retire(rest, (rests,) if rest == Rest.MEET else ()))
        target = self.machines[worker].target(engine, trainer.counter)
        self._check_target(world, trainer, target)
        place = self.size + 1 + worker * 8 + trainer.steps
        live = live.step(trainer.model + Fraction(10**place), EXACT)
        world = self._set(world, "lives", worker, live)._replace(expected=world.expected + Fraction(10**place))
        self._check_mean(world)
        trainer = trainer._replace(plan=trainer.plan[1:], model=live.taken, counter=target, steps=trainer.steps + 1)
        world = self._set(world, "trainers", worker, trainer)
        # with a tally, which nobody uses, since records of equal fields are equal: it is never taken for a Retire
        return self._post(world, worker, messages.Arrive(target, (-1,)))

    def _check_target(self, world, trainer, target):
        newest = max(other.counter for other in world.trainers)
        require(target > trainer.counter, "a trainer's rounds grow")
        require(target == trainer.counter + 1 or target <= newest, "{} is past the newest round {}", target, newest)
        require(self.clock == "round" or target == trainer.counter + 1, "a worker counts its own steps")

    def _dies(self, world, worker):
        world = self._set(world, "trainers", worker, world.trainers[worker]._replace(closed=True))
        return self._post(world._replace(died=True), worker, messages.Abort("failed"))

    # the engine

    def _step(self, world, worker, event, came=None):
        before = world.engines[worker]
        key = worker, before, event
        if key not in self._steps:
            self._steps[key] = self.machines[worker].step(before, event)
        after, actions = self._steps[key]
        require(after.round >= before.round, "rounds grow")
        require(after.heard >= before.heard, "what is known grows")
        if isinstance(event, messages.Arrive) and not before.life.over:
            require(after.round == event.round + 1, "the trainer has come to the next round")
        world = self._set(world, "engines", worker, after)
        for action in actions:
            world = self._perform(world, worker, action, came)
        self._check_mean(world)
        return world

    def _perform(self, world, worker, action, came):
        live = world.lives[worker]
        if isinstance(action, messages.Send):
            dest, message = action
            require(dest != worker, "no message to oneself")
            return world._replace(network=world.network | {(worker, dest, messages.Receive(worker, message))})
        if isinstance(action, messages.Fail):
            return world._replace(failed=True)
        if isinstance(action, pairwise.Ask):
            self._check_swap(world, worker, action.partner)
            require(action.number < world.trainers[worker].steps, "at most one swap a step")
            require(action.partner == self.schedule.partner(worker, action.number), "the partner that was drawn")
            world = self._set(world, "lives", worker, live.ask())
            return self._fly(world, worker, action, live.model)
        if isinstance(action, pairwise.Accept):
            return self._check_swap(world, worker, action.partner)
        if isinstance(action, pairwise.Answer):
            world = self._set(world, "lives", worker, after := live.answer(came, EXACT))
            require(2 * after.model == live.model + came, "the mean of both")
            return self._fly(world, worker, action, self.answered(live, after))
        if isinstance(action, pairwise.Merge):
            return self._set(world, "lives", worker, live.merge(came, EXACT))
        if isinstance(action, messages.GlobalMean | messages.Barrier):
            return self._gather(world, worker, action)
        if isinstance(action, pairwise.Abandon):
            require(world.engines[worker].life.aborted, "only a failure lets a swap go")
            return world
        require(action == messages.Shutdown(), "unknown action {}", action)
        alone = any(not trainer.resting and not trainer.closed for trainer in world.trainers)
        require(world.engines[worker].life.aborted or not alone, "an engine leaves while one trains")
        return self._set(world, "trainers", worker, world.trainers[worker]._replace(closed=True))

    def answered(self, before, after):
        """What a passive worker answers: its model before it averaged."""
        del after
        return before.model

    def _check_swap(self, world, worker, partner):
        neighbours = self.schedule.neighbours(worker)
        require(partner in neighbours, "{} is no neighbour of {}", partner, worker)
        posted = [entry for entry in world.flying if entry[0] == worker]
        eager = self.eager and not self.schedule.is_active(worker)  # its last answer may still be on the way
        require(eager or not posted, "worker {} begins a swap while {} are on the way", worker, posted)
        return world

    def _fly(self, world, worker, action, model):
        return world._replace(flying=world.flying | {(worker, action.partner, action.number, action.round, model)})

    def _check_mean(self, world):
        """The sum of the live models, with what is on its way back, is that of the initial models and all steps."""
        if world.died or any(engine.life.aborted for engine in world.engines):
            return
        total = sum(self._model(world, worker) for worker in range(self.size))
        for source, dest, _, _, model in world.flying:
            if not self.schedule.is_active(source):
                total += (model - world.lives[dest].sent) / 2
        require(total == world.expected, "the mean is not preserved: {} instead of {}", total, world.expected)

    def _model(self, world, worker):
        """The live model of a worker; the mean already, if it is in a consensus that all have entered."""
        what = world.gathered[worker]
        made_of = [model for entered, _, _, model in world.entered if entered == what]
        if what is not None and what[0] == Rest.CONSENSUS and len(made_of) == self.size:
            return sum(made_of) / self.size
        return world.lives[worker].model

    def _gather(self, world, worker, action):
        rest = Rest.CONSENSUS if isinstance(action, messages.GlobalMean) else Rest.MEET
        require(all(engine.life.resting in (rest, Rest.NONE) for engine in world.engines), "all rest alike")
        require(not world.flying, "models are on their way while all stand still: {}", world.flying)
        for other, engine in enumerate(world.engines):  # another may have to see yet that its answer has arrived
            arrived = engine.swap is None or (engine.swap.phase == Phase.ANSWERED and other != worker)
            require(arrived and not engine.asks, "worker {} is in a swap", other)
        rests = world.trainers[worker].rests
        require(all(trainer.rests >= rests for trainer in world.trainers), "all trainers rest")
        if rest == Rest.MEET:
            require(action.tally == (rests * self.size,), "the sums {}", action.tally)
        world = self._set(world, "gathered", worker, (rest, rests))
        entry = (rest, rests), worker, world.engines[worker].round, world.lives[worker].model
        return world._replace(entered=world.entered | {entry})

    def _completed(self, world, worker):
        what = world.gathered[worker]
        made_of = [entry for entry in world.entered if entry[0] == what]
        require(len({round_ for _, _, round_, _ in made_of}) == 1, "not all stand at the same round: {}", made_of)
        newest = world.engines[worker].round - 1

        if what[0] == Rest.CONSENSUS:
            mean = self._model(world, worker)
            world = self._set(world, "lives", worker, world.lives[worker].gather(mean))
        world = self._set(world, "gathered", worker, None)
        world = self._set(world, "newest", worker, newest)
        if what not in world.gathered:
            world = world._replace(entered=world.entered - set(made_of))
        return self._step(world, worker, messages.Completed())

    # the end

    def check_end(self, world):
        failed = world.died and self.size > 1
        require(all(engine.life.over for engine in world.engines), "not all are at their end: {}", world.engines)
        # all may have closed before the engine hears that its trainer has failed inside of close()
        unseen = failed and self.dies[2] and not world.trainers[self.dies[0]].plan
        require(world.failed == failed or unseen, "a failure is seen, and only where there is one")
        require(not any(world.gathered), "a global mean or barrier is never over")
        if not failed:
            require(all(trainer.closed for trainer in world.trainers), "all trainers are done")
            require(not world.flying, "models are on their way: {}", world.flying)

    # helpers

    def _post(self, world, worker, event):
        return world._replace(network=world.network | {(worker, worker, event)})

    def _set(self, world, field, worker, value):
        values = getattr(world, field)
        return world._replace(**{field: (*values[:worker], value, *values[worker + 1 :])})


def _place(event):
    """The place of a trainer's event among those that it may have posted and its engine not seen."""
    kinds = (messages.Arrive, messages.Retire, messages.Abort)
    return kinds.index(type(event)), event.round if isinstance(event, messages.Arrive) else 0


__all__ = ["EXACT", "Cluster", "Violation"]
