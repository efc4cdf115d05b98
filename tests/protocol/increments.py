"""The simulation of workers who exchange increments: the same machine, with partial sums over all, and other rules.

An increment is the set of its (worker, version), and a sum is the union of sets that have nothing in common: nothing
counts twice. What a trainer has applied is its model.
"""

from protocol.simulation import Cluster, require

from wagma_jax.protocol.increments import Pending, Untaken
from wagma_jax.protocol.messages import Rest
from wagma_jax.protocol.plan import PartialPlan
from wagma_jax.schedule import GroupSchedule


def add(total, other):
    require(not total & other, "{} counts twice", total & other)
    return total | other


class Increments(Cluster):
    def __init__(
        self,
        num_workers,
        sync_period,
        plans,
        clock="step",
        seed=None,
        quorum=1,
        pending=Pending,
        untaken=Untaken,
        **more,
    ):
        self.rules = pending, untaken
        schedule = GroupSchedule(num_workers, num_workers, sync_period)
        super().__init__(
            schedule, plans, quorum, clock, plan=PartialPlan(num_workers, sync_period, quorum, seed), **more
        )

    def start(self):
        world = super().start()
        return world._replace(trainers=tuple(trainer._replace(model=frozenset()) for trainer in world.trainers))

    def records(self):
        return {"outboxes": (self.rules[0](),) * self.size, "inboxes": (self.rules[1](),) * self.size}

    def check_quiet(self, world):
        """Whoever waits, waits for the initiator."""
        if self.quorum > 1:
            return
        for trainer, engine in zip(world.trainers, world.engines, strict=True):
            t, r = trainer.waits, engine.round
            if isinstance(t, int) and r <= t and not engine.life.over and not self.schedule.is_sync(r):
                initiator = self.plan.step(0, r).initiator
                waits = initiator is not None and world.engines[initiator].arrived < r
                require(waits, "a worker waits at round {} for nobody who starts it", r)

    def _can_take(self, world, worker, t):
        return True

    def _publish(self, world, worker, target):
        pending = world.outboxes[worker].hand_in(target, frozenset({(worker, target)}), add)
        return self._set(world, "outboxes", worker, pending), world.trainers[worker].model

    def _contribute(self, world, worker, r):
        planned = self.plan.step(worker, r)
        if planned.initiator is not None and self.clock == "step":
            engine, trainer = world.engines[planned.initiator], world.trainers[planned.initiator]
            came = trainer.counter >= r or engine.life.resting != Rest.NONE or trainer.closed
            require(came, "round {} begins without its initiator", r)
        pending, total = world.outboxes[worker].contribute()
        return self._set(world, "outboxes", worker, pending), frozenset() if total is None else total

    def _put(self, world, worker, r, group, version, made_of):
        result = frozenset()
        for _, part in made_of:
            result = add(result, part)
        return self._set(world, "inboxes", worker, world.inboxes[worker].put(r, result, add))

    def _put_mean(self, world, worker, version, mean):
        return world

    def _take(self, world, worker, counter):
        trainer = world.trainers[worker]
        untaken, total = world.inboxes[worker].collect()
        applied = trainer.model if total is None else add(trainer.model, total)
        world = self._set(world, "inboxes", worker, untaken)
        if self.schedule.is_sync(trainer.waits):
            k = trainer.waits
            missing = {(w, k) for w in range(self.size) if world.outboxes[w].version == k} - applied
            require(not missing, "sync round {} has not brought {}", k, missing)
        return self._set(
            world, "trainers", worker, trainer._replace(waits=None, counter=counter, base=untaken.newest, model=applied)
        )

    def check_end(self, world):
        super().check_end(world)
        if world.died:
            return
        pending = [outbox.total or frozenset() for outbox in world.outboxes]
        for worker, trainer in enumerate(world.trainers):
            untaken = world.inboxes[worker].total
            found = trainer.model if untaken is None else add(trainer.model, untaken)
            for part in pending:
                found = add(found, part)
            for other, calls in enumerate(self.plans):
                own = {version for w, version in found if w == other}
                require(len(own) == calls.count("a"), "worker {} has {} of {}'s", worker, own, other)
