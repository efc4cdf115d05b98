"""Image training over MPI: what one process, which is one worker, prepares, compiles and leaves behind."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train import checkpoints as ckpt
from train import classification, distributed, loop, processes, report, resume
from train.classification import Evaluation, inputs, unreadable
from train.data import pipeline
from wagma_jax import algorithms

if TYPE_CHECKING:
    from train.images import Options, Prepared


def prepare(options: "Options") -> "Prepared":
    """As ``images.prepare``; called by all processes.

    Raises:
        ValueError: On all processes, if anything is wrong on one.
    """
    from train import images

    size = 1
    if distributed.launched(os.environ) is not None:
        try:
            from wagma_jax.exchange import MPI
        except ImportError as error:
            raise ValueError(str(error)) from None
        size = MPI.COMM_WORLD.size
    if size < 2 or size != options.workers:
        raise ValueError(
            f"--transport mpi makes every process a worker, got --workers {options.workers} and {size} "
            f"process{'es' * (size > 1)}: start with wagma launch -n {max(options.workers, 2)}, or use --transport xla"
        )
    from wagma_jax.exchange import MPI

    distributed.set_mpi_rank(MPI.COMM_WORLD.rank)
    peers = processes.Peers(MPI.COMM_WORLD)
    peers.agreed(options.check)
    strategy, data, network = peers.agreed(lambda: images.check_alone(options))
    num_examples = len(data.train)
    peers.check_same(options.to_json() | {"training examples": num_examples, "classes": data.classes})
    found, row = None, None
    if options.resume is not None:
        folder = options.resume / images.CHECKPOINTS
        parts = images.state_parts(options, network, lambda model: {"local_steps": jnp.zeros((), jnp.int32)})

        def restore():
            return resume.restore(options, folder, parts, num_examples, None, images.AXIS) if peers.rank == 0 else None

        restored = peers.agreed(restore)
        found = peers.from_first(None if restored is None else restored[0])
        row = peers.scatter(None if restored is None else jax.tree.map(np.asarray, restored[1]))
    if found is not None and found.first_step == found.step:
        peers.agreed(lambda: _set_aside_ledgers(options, found.step) if peers.rank == 0 else None)
    position = peers.agreed(lambda: images.planned(options, num_examples, found))
    position = peers.from_first(position)
    state = None
    if row is not None:
        model, optimizer = jax.tree.map(jnp.asarray, (row["model"], row["optimizer"]))
        state = processes.State(model, optimizer, int(row["strategy"]["local_steps"]))
    out = options.resume
    if out is None:
        out = peers.from_first(peers.agreed(lambda: options.make_out("images") if peers.rank == 0 else None))
    assert out is not None
    peers.agreed(lambda: options.save(out) if peers.rank == 0 else None)
    return images.Prepared(options, strategy, data, network, None, position, out, state, peers)


def run(prepared: "Prepared") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """As ``images.run``; called by all processes. The rows are those of the first.

    Raises:
        loop.Interrupted: On all processes: a signal asked the run to stop; it can be resumed.
    """
    from train import images
    from wagma_jax.exchange import MPI

    options, data, out, peers = prepared.options, prepared.data, prepared.out, prepared.peers
    position = prepared.position
    assert peers is not None
    first = peers.rank == 0
    evaluation = Evaluation(
        prepared.network,
        data,
        None,
        images.AXIS,
        threads=options.loader_threads,
        processes=options.loader_processes,
        part=(peers.rank, peers.size),
        add_up=peers.add_up,
    )
    state = prepared.state
    if not isinstance(state, processes.State):
        # made once, as compiling its initialization takes seconds
        initial = peers.from_first(prepared.network.init(options.seed) if first else {})
        model = jax.tree.map(jnp.asarray, initial)
        optimizer = options.local_optimizer(prepared.progress)
        state = processes.State(model, optimizer.init(model["params"]), 0)
    evaluation.compile(jax.eval_shape(lambda model: model, state.model))
    algorithm = algorithms.find(options.algorithm)
    work, like = _work(prepared, algorithm.exchanges, state, evaluation)
    settings = options.settings(first_round=position.step, ledger=out)
    exchange = algorithm.mpi(settings, MPI.COMM_WORLD, {"tree": like, "tally": np.zeros(2, np.float32)})
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(report.MetricsFile(out / "metrics.jsonl", position.step, first))
        if options.tensorboard and first:
            metrics.sinks.append(stack.enter_context(report.TensorBoard(out / "tensorboard", position.step)))
        saver = None
        if options.checkpoint_every and first:
            saver = stack.enter_context(ckpt.Checkpoints(out / images.CHECKPOINTS, options.keep_checkpoints))
        outcome, evaluated = processes.run(
            options,
            work,
            state,
            position,
            exchange,
            peers,
            metrics,
            saver,
            lambda index: report.warn(f"unreadable: {data.train.describe(index)}"),
        )
    if outcome.signal is not None:
        raise loop.Interrupted(outcome, out, saved=options.checkpoint_every > 0)
    assert evaluated is not None
    lost = set().union(*peers.everyone(evaluation.unreadable))
    summary: dict[str, Any] = {}
    if first:
        ckpt.export(out / images.CONSENSUS, jax.tree.map(np.asarray, outcome.state.model), images.description(prepared))
        summary = images.finish(prepared, outcome.position, metrics.rows, evaluated, lost)
    summary = peers.from_first(summary)
    peers.close()
    return summary, metrics.rows


def _set_aside_ledgers(options: "Options", step: int) -> None:
    """Moves the ledgers of a run that goes on with other workers or another algorithm: they do not continue."""
    assert options.resume is not None
    folder = options.resume / f"ledger-before-{step}"
    for path in sorted(options.resume.glob("ledger-*.jsonl")):
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)


def _work(
    prepared: "Prepared", exchanges: str, state: processes.State, evaluation: Evaluation
) -> tuple[processes.Work, Any]:
    """Compiles what the loop calls; with it a tree like those that are exchanged."""
    options, data, network, peers = prepared.options, prepared.data, prepared.network, prepared.peers
    optimizer = options.local_optimizer(prepared.progress)
    assert peers is not None
    mine = [peers.rank]

    def compute(model, batch):
        return classification.gradients(network, data, options, model, batch)

    def apply(grads, stats, model, opt_state, count):
        # the rate goes by what all have done, also where this worker has skipped rounds
        opt_state = optax.tree_utils.tree_set(opt_state, count=count)
        return classification.apply_gradients(optimizer, grads, stats, model, opt_state)

    def whole_step(model, opt_state, batch, count):
        grads, stats, metrics = compute(model, batch)
        return *apply(grads, stats, model, opt_state, count), metrics

    def first_half(model, opt_state, batch, count):
        del count
        grads, stats, metrics = compute(model, batch)
        return {"params": grads, "stats": stats}, opt_state, metrics

    def second_half(model, opt_state, averaged, count):
        return apply(averaged["params"], averaged["stats"], model, opt_state, count)

    def square_distance(tree, mean):
        squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), tree["params"], mean["params"])
        return sum(jax.tree.leaves(squares))

    count, (model, opt_state, _) = np.int32(0), state
    batch = classification.input_shapes(data, (options.batch_size,), None)
    if exchanges == "models":
        like, before = model, whole_step
        after: Any = lambda model, opt_state, averaged, count: (averaged, opt_state)
        distance: Any = jax.jit(square_distance).lower(model, model).compile()
    else:
        like, before = {"params": jax.tree.map(jnp.zeros_like, model["params"]), "stats": model["stats"]}, first_half
        after = jax.jit(second_half).lower(model, opt_state, like, count).compile()
        distance = lambda tree, mean: 0.0  # parameters are equal all the time
    compiled = jax.jit(before, donate_argnums=1).lower(model, opt_state, batch, count).compile()

    def batches(local_steps: int) -> Iterator[tuple[Any, np.ndarray]]:
        return pipeline.training_batches(
            data.train,
            prepared.order,
            mine,
            range(local_steps, local_steps + prepared.position.total_steps * options.workers + 2),
            lambda batch: (jax.device_put(jax.tree.map(lambda x: x[0], inputs(batch))), unreadable(batch)),
            chunk=data.chunk,
            threads=options.loader_threads,
            processes=options.loader_processes,
        )

    return processes.Work(compiled, after, batches, evaluation, distance), like
