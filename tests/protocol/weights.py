"""The workers of `simulation` with contributions that count for steps.

Beside what the workers count themselves, it is written down here which steps have entered no group sum, and which no
global mean: a step has the name of its publication. Every contribution must count for exactly these.
"""

from fractions import Fraction
from typing import NamedTuple

from protocol.simulation import Cluster, require

from wagma_jax.protocol.rules import GroupSum, Merge, Outbox, Steps, group_weights, mean_weights


class Taken(NamedTuple):
    """The steps of a worker: those in no group sum and those in no global mean, by the round of their publication."""

    fresh: tuple = ()
    since_mean: tuple = ()


class WeightedCluster(Cluster):
    """The rules of the game with weights.

    Args:
        steps: How a worker counts.
        in_turn: Whether a contribution is used up when an exchange reads it, not when its result is there.
    """

    def __init__(self, *arguments, steps=Steps, in_turn=True, **options):
        super().__init__(*arguments, **options)
        self.counts, self.in_turn = steps, in_turn

    def records(self):
        outboxes = tuple(Outbox(-1, ("W", worker, -1), self.counts()) for worker in range(self.size))
        return {**super().records(), "outboxes": outboxes, "steps": (Taken(),) * self.size}

    def _publish(self, world, worker, target):
        world = self._set(world, "outboxes", worker, world.outboxes[worker].take_step())
        world, model = super()._publish(world, worker, target)
        fresh, since_mean = world.steps[worker]
        return self._set(world, "steps", worker, Taken((*fresh, target), (*since_mean, target))), model

    def _contribute(self, world, worker, r):
        world, version = super()._contribute(world, worker, r)
        outbox, taken, sync = world.outboxes[worker], world.steps[worker], self.schedule.is_sync(r)
        after, count = outbox.contribute(sync)
        new = taken.since_mean if sync else taken.fresh
        require(count == len(new), "worker {} contributes {} steps at round {}, not {}", worker, count, r, new)
        require(not new or new[-1] == version, "worker {} contributes steps that it has not published", worker)
        if not sync:
            world = self._set(world, "steps", worker, taken._replace(fresh=()))
        return self._set(world, "outboxes", worker, after if self.in_turn else outbox), (version, count)

    def _put(self, world, worker, r, group, contribution, made_of):
        version, _ = contribution
        counts = [count for _, (_, count) in sorted(made_of)]
        shares = [Fraction(count, sum(counts)) if any(counts) else Fraction(1, len(counts)) for count in counts]
        weights = mean_weights(counts) if self.schedule.is_sync(r) else group_weights(counts)
        require([Fraction(weight, sum(weights)) for weight in weights] == shares, "{} of {}", weights, counts)
        if self.schedule.is_sync(r):
            return super()._put(world, worker, r, group, version, made_of)
        if not self.in_turn:
            outbox = world.outboxes[worker]
            world = self._set(world, "outboxes", worker, outbox._replace(steps=outbox.steps.contribute()))
        require(sum(weights) == (sum(counts) or len(group)), "a sum counts every step once: {}", weights)
        total = frozenset((member, at) for member, (at, _) in made_of)
        inbox = world.inboxes[worker].put(GroupSum(r, version, sum(weights), total, version == r))
        return self._set(world, "inboxes", worker, inbox)

    def _put_mean(self, world, worker, version, mean):
        world = super()._put_mean(world, worker, version, mean)
        require(world.outboxes[worker].steps[:2] == (0, 0), "a mean counts for no steps")
        return self._set(world, "steps", worker, Taken())

    def _take(self, world, worker, counter):
        trainer, steps = world.trainers[worker], world.outboxes[worker].steps
        if not self.schedule.is_sync(trainer.waits):
            _, merge, _ = world.inboxes[worker].collect(trainer.model[2])
            fresh = len(world.steps[worker].fresh)
            late = merge == Merge.LATE
            require(not late or steps.fresh == fresh > 0, "a late W' counts for {}, not {}", steps.fresh, fresh)
        return super()._take(world, worker, counter)
