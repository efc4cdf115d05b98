"""Bodies over MPI: runs of workloads as their command lines begin them, but for signals and the end of the process."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import sys

import jax
import numpy as np

from models import transformer
from tests.train import toy
from train import images, loop, run, translation
from train.results import MetricsFile
from train.transports import mpi
from train.transports.group import MpiGroup


def toys(comm, *commands):
    """Several runs of the toy, one after the other; what they have printed."""
    return "".join(_run(comm, toy.WORKLOAD, command) for command in commands)


def counting_toys(comm, *commands):
    """Runs of a toy that counts in integers, which are not averaged."""

    class Counting(toy.Toy):
        def init(self, seed):
            model = super().init(seed)
            return {**model, "stats": {**model["stats"], "drawn": np.zeros((), np.int32)}}

        def gradients(self, model, carry, batch, key):
            made = super().gradients(model, carry, batch, key)
            drawn = model["stats"]["drawn"] + jax.random.randint(key, (), 0, 1000)
            return made._replace(stats={**made.stats, "drawn": drawn})

        def evaluate(self, model, place):
            return *super().evaluate(model, place), int(model["stats"]["drawn"])

        def scores(self, parts):
            drawn = {part[2] for part in parts}
            assert len(drawn) == 1, "all evaluate the same model"
            return {**super().scores([part[:2] for part in parts]), "drawn": drawn.pop()}

    workload = run.Workload("toy", toy.Options, Counting, toy.WORKLOAD.optimizer)
    return "".join(_run(comm, workload, command) for command in commands)


def image_run(comm, command):
    """A run of the images; what it has printed."""
    return _run(comm, images.WORKLOAD, command)


def navigation_run(comm, command):
    """A run of the navigation; what it has printed."""
    from train import navigation

    return _run(comm, navigation.WORKLOAD, command)


def translation_run(comm, command):
    """A run of translation with a Transformer of two layers; what it has printed."""
    tiny = transformer.TRANSFORMERS["tiny"]
    smaller = {"d_model": 16, "num_heads": 2, "d_ff": 32, "num_encoder_layers": 1, "num_decoder_layers": 1}
    transformer.TRANSFORMERS["tiny"] = dataclasses.replace(tiny, **smaller)
    try:
        return _run(comm, translation.WORKLOAD, command)
    finally:
        transformer.TRANSFORMERS["tiny"] = tiny


def run_of(comm, path, command):
    """A run of the workload in a file; what it has printed."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return _run(comm, module.WORKLOAD, command)


def stopped_toy(comm, command, number, step):
    """A run of the toy that is asked to stop: its last worker gets a signal before a step; what it has printed."""

    class Toy(toy.Toy):
        def feed(self, place, seed, first_unit):
            feed = super().feed(place, seed, first_unit)
            following = feed.next

            def signalled(at, model, carry):
                if at == step and place.rank == place.num_workers - 1:
                    os.kill(os.getpid(), number)
                return following(at, model, carry)

            feed.next = signalled
            return feed

    return _run(comm, run.Workload("toy", toy.Options, Toy, toy.WORKLOAD.optimizer), command)


def _run(comm, workload, command):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        group = MpiGroup(comm)
        # the pool may have more ranks
        options = run.parse(workload, [*map(str, command), "--workers", str(comm.size)])
        try:
            run.run(run.prepare(workload, options, group))
        except (run.AlreadyCompleteError, loop.Interrupted) as ended:
            print(ended)
        group.close()
    return " ".join(printed.getvalue().split()) + "\n"


def adam_rounds(comm, out, steps):
    """Adam under clock="round" with a worker that skips rounds: every local step against a trajectory in NumPy.

    The rate goes by the round, by which a worker that skips some gets on faster; the moments, and the correction of
    their bias, by the updates that the worker itself has made. Returns their number, and in how many that matters.
    """
    peak, warmup, beta1, beta2, epsilon = 0.1, 0.1, 0.9, 0.99, 1e-8
    options = run.parse(
        toy.WORKLOAD,
        [
            "--optimizer", "adam", "--beta2", str(beta2), "--weight-decay", "0", "--noise", "0", "--clock", "round",
            "--learning-rate", str(peak), "--warmup", str(warmup), "--straggler", "fixed:1:0.03", "--pause", "0.005",
            "--sync-period", "10", "--group-size", "2", "--steps", str(steps), "--checkpoint-every", "0",
            "--workers", str(comm.size), "--out", str(out),
        ],
    )  # fmt: skip
    group = MpiGroup(comm)
    prepared = run.prepare(toy.WORKLOAD, options, group)
    seen = []

    class Workers(mpi.MpiWorkers):
        """Notes what every step begins with and what it sends."""

        def step(self, batch, carry, share, tally):
            begin = np.array(self.model["params"]["w"], np.float64), self.round, share
            average = self.exchange.average

            def noted(sent, tally):
                arrays = {name: np.array(value, np.float64) for name, value in batch.arrays.items()}
                seen.append((*begin, arrays, np.array(sent["params"]["w"], np.float64)))
                return average(sent, tally=tally)

            self.exchange.average = noted
            try:
                return super().step(batch, carry, share, tally)
            finally:
                self.exchange.average = average

    def rate(share):
        if share < warmup:
            return peak * share / warmup
        return peak / 2 * (1 + np.cos(np.pi * (share - warmup) / (1 - warmup)))

    begin = run.Begin(prepared.task.init(0))
    with (
        contextlib.redirect_stdout(io.StringIO()),
        Workers(options, prepared.learner, group, prepared.place, prepared.position, begin, prepared.out) as workers,
    ):
        metrics = MetricsFile(prepared.out / "rows", 0, False)
        training = loop.Run(options, prepared.task, workers, prepared.position, prepared.budget, metrics, None)
        training(prepared.task.feed(prepared.place, 0, 0))

    correction = lambda count: np.sqrt(1 - beta2**count) / (1 - beta1**count)
    m = v = np.zeros(5)
    seen_to_matter = 0
    for count, (before, done, share, batch, sent) in enumerate(seen, 1):
        assert share == done / steps, (share, done)
        gradient = 2 * batch["x"].T @ (batch["x"] @ before - batch["y"]) / len(batch["y"])
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        update = rate(share) * (m / (1 - beta1**count)) / (np.sqrt(v / (1 - beta2**count)) + epsilon)
        np.testing.assert_allclose(sent, before - update, rtol=2e-5, atol=1e-5)
        # and it would be seen if the correction went by rounds
        by_round = rate(share) * (m / (1 - beta1 ** (done + 1))) / (np.sqrt(v / (1 - beta2 ** (done + 1))) + epsilon)
        if 0 < share < 0.6 and abs(correction(done + 1) / correction(count) - 1) > 0.02:
            seen_to_matter += 1
            assert np.abs(by_round - update).max() > 1e-3 * np.abs(update).max()
    group.close()
    return len(seen), seen_to_matter
