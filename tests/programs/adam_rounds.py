"""Adam under clock="round" with a worker that skips rounds: every local step against a trajectory in NumPy.

The rate goes by the round, by which a worker that skips some gets on faster; the moments, and the correction of their
bias, by the updates that the worker itself has made.
"""

import sys

import numpy as np

from tests.train.toy import WORKLOAD
from train import loop, run
from train.results import MetricsFile
from train.transports import mpi

STEPS, RATE, WARMUP, BETA1, BETA2, EPSILON = 60, 0.1, 0.1, 0.9, 0.99, 1e-8

options = run.parse(
    WORKLOAD,
    [
        "--optimizer", "adam", "--beta2", str(BETA2), "--weight-decay", "0", "--noise", "0", "--clock", "round",
        "--learning-rate", str(RATE), "--warmup", str(WARMUP), "--straggler", "fixed:1:0.03", "--pause", "0.005",
        "--sync-period", "10", "--group-size", "2", "--steps", str(STEPS), "--checkpoint-every", "0", "--out",
        sys.argv[1],
    ],
)  # fmt: skip
prepared = run.prepare(WORKLOAD, options)
seen = []


class Workers(mpi.MpiWorkers):
    """Notes what every step begins with and what it sends."""

    def step(self, batch, carry, share, tally):
        begin = np.array(self.model["params"]["w"], np.float64), self.round, share
        average = self.exchange.average

        def noted(sent, tally):
            seen.append((*begin, jax_free(batch.arrays), np.array(sent["params"]["w"], np.float64)))
            return average(sent, tally=tally)

        self.exchange.average = noted
        try:
            return super().step(batch, carry, share, tally)
        finally:
            self.exchange.average = average


def jax_free(arrays):
    return {name: np.array(value, np.float64) for name, value in arrays.items()}


def rate(share):
    if share < WARMUP:
        return RATE * share / WARMUP
    return RATE / 2 * (1 + np.cos(np.pi * (share - WARMUP) / (1 - WARMUP)))


group, position = prepared.group, prepared.position
begin = run.Begin(prepared.task.init(0))
with Workers(options, prepared.learner, group, prepared.place, position, begin, prepared.out) as workers:
    training = loop.Run(
        options, prepared.task, workers, position, prepared.budget, MetricsFile(prepared.out / "rows", 0, False), None
    )
    training(prepared.task.feed(prepared.place, 0, 0))

m = v = np.zeros(5)
for count, (before, done, share, batch, sent) in enumerate(seen, 1):
    assert share == done / STEPS, (share, done)
    gradient = 2 * batch["x"].T @ (batch["x"] @ before - batch["y"]) / len(batch["y"])
    m = BETA1 * m + (1 - BETA1) * gradient
    v = BETA2 * v + (1 - BETA2) * gradient**2
    update = rate(share) * (m / (1 - BETA1**count)) / (np.sqrt(v / (1 - BETA2**count)) + EPSILON)
    np.testing.assert_allclose(sent, before - update, rtol=2e-5, atol=1e-5)
    # and it would be seen if the correction went by rounds
    by_round = rate(share) * (m / (1 - BETA1 ** (done + 1))) / (np.sqrt(v / (1 - BETA2 ** (done + 1))) + EPSILON)
    if done + 1 != count and 0 < share < 0.6 and count < 20:
        assert np.abs(by_round - update).max() > 1e-4
print(f"{len(seen)} steps in {STEPS} rounds")
