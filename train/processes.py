"""Training where every MPI process is a worker: a worker's loop, and what workers tell each other beside the exchange.

Workers meet at sync rounds alone, where their models are equal: there they evaluate, save, and stop when asked to.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from train import distributed, loop, report, stragglers
from train.checkpoints import Checkpoints, Position
from train.interrupts import Interrupts
from train.options import RunOptions

_REPORT_TAG = 21
_SAY_SECONDS = 5.0  # between lines of progress where there is no terminal to draw a bar in

T = TypeVar("T")


class Work(NamedTuple):
    """What a script gives to a worker's loop; all functions are compiled.

    ``count`` is what the learning rate goes by: the steps that all workers together have taken, over P.

    Attributes:
        before: From (model, optimizer's state, batch, count) to (the tree to be exchanged, optimizer's state, metrics).
        after: From (model, optimizer's state, averaged tree, count) to (model, optimizer's state).
        batches: From a number of local steps to an iterator over (batch, indices of examples that could not be read).
        evaluate: From the consensus model to its metrics by name; called by all at the same time.
        square_distance: From (the tree before, after a global mean) to the squared distance of the parameters.
    """

    before: Callable[[Any, Any, Any, Any], tuple[Any, Any, dict[str, Any]]]
    after: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    batches: Callable[[int], Iterator[tuple[Any, np.ndarray]]]
    evaluate: Callable[[Any], dict[str, float]]
    square_distance: Callable[[Any, Any], Any]


class State(NamedTuple):
    """One worker's state.

    Attributes:
        model: Parameters and statistics.
        optimizer: State of the local optimizer.
        local_steps: Steps that this worker has taken: where it is in its stream of batches.
    """

    model: Any
    optimizer: Any
    local_steps: int


@dataclasses.dataclass
class Counts:
    """What one worker has counted in this start of the run.

    Attributes:
        steps: Local steps.
        sums: Sums of the metrics of all steps, by name.
        late: Late contributions.
        staleness: The oldest contribution, in rounds.
        seconds: In the loop, without evaluations and checkpoints.
        waited: Seconds in exchanges.
        data_wait: Seconds without a batch.
        square_distance: Of the parameters to the consensus, when it was last looked at.
        unreadable: Indices of examples that could not be read.
    """

    steps: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    late: int = 0
    staleness: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    data_wait: float = 0.0
    square_distance: float = 0.0
    unreadable: frozenset[int] = frozenset()


class Peers:
    """The other workers, for what is not exchanged in rounds.

    Args:
        comm: An mpi4py communicator; a duplicate is used.
    """

    def __init__(self, comm: Any):
        self._comm = comm.Dup()
        self._requests: list[Any] = []
        self._reports: dict[int, list[tuple[int, Counts]]] = {rank: [] for rank in range(comm.size)}
        self._heard = dict.fromkeys(range(comm.size), 0)  # the last boundary that each has reported of
        self.rank: int = comm.rank
        self.size: int = comm.size

    def agreed(self, function: Callable[[], T]) -> T:
        """Calls a function on all workers, and returns its result only if it worked on all.

        Raises:
            ValueError: What the function raised, or another worker's.
            ProcessError: For errors of other kinds.
        """
        result, error = distributed.attempt(function)
        found = self._met().allgather(None if error is None else (isinstance(error, ValueError), str(error)))
        if error is not None:
            raise error
        for rank, failure in enumerate(found):
            if failure is not None:
                raise (ValueError if failure[0] else distributed.ProcessError)(f"rank {rank}: {failure[1]}")
        return result  # type: ignore[return-value]

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Raises ValueError on all workers if any value, by its name, differs from the first worker's."""
        everyone = self._met().allgather({name: str(value) for name, value in what.items()})
        for rank, other in enumerate(everyone):
            different = [name for name in what if other[name] != everyone[0][name]]
            if different:
                listed = ", ".join(f"{name}: {other[name][:60]}" for name in different)
                raise ValueError(f"rank {rank} differs from rank 0: {listed}; start all with the same options and data")

    def from_first(self, value: T) -> T:
        """The first worker's value."""
        return self._met().bcast(value)

    def scatter(self, tree: Any) -> Any:
        """This worker's row of the first worker's tree of NumPy arrays [num_workers, ...]; None there is None here."""
        structure = self._met().bcast(None if tree is None else jax.tree.structure(tree))
        if structure is None:
            return None
        leaves = jax.tree.leaves(tree) if self.rank == 0 else [None] * structure.num_leaves
        rows = [self._comm.scatter(None if leaf is None else list(leaf)) for leaf in leaves]
        return jax.tree.unflatten(structure, rows)

    def stacked(self, tree: Any) -> Any:
        """On the first worker the trees of all, as NumPy arrays [num_workers, ...]; None on the others."""
        comm = self._met()
        gathered = [comm.gather(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
        if self.rank != 0:
            return None
        return jax.tree.unflatten(jax.tree.structure(tree), [np.stack(rows) for rows in gathered])

    def everyone(self, value: T) -> list[T]:
        """The values of all workers, on all."""
        return self._met().allgather(value)

    def add_up(self, sums: dict[str, float]) -> dict[str, float]:
        """Sums by name over all workers, on all."""
        everyone = self._met().allgather(sums)
        return {name: sum(one[name] for one in everyone) for name in sums}

    def _met(self) -> Any:
        """The communicator, when all have come to the same place."""
        from wagma_jax.exchange.barrier import barrier

        barrier(self._comm)
        return self._comm

    def tell(self, boundary: int, counts: Counts) -> None:
        """Reports to the first worker, without waiting for it."""
        counts = dataclasses.replace(counts, sums=dict(counts.sums))
        if self.rank == 0:
            self._reports[0].append((boundary, counts))
            return
        self._requests = [request for request in self._requests if not request.Test()]
        self._requests.append(self._comm.isend((boundary, counts), 0, _REPORT_TAG))

    def reports(self, until: int | None = None) -> list[tuple[int, list[Counts]]]:
        """On the first worker what all have reported of further boundaries; waits for boundary ``until`` if given."""
        if self.rank != 0:
            return []
        for rank in range(1, self.size):
            while (message := self._comm.improbe(rank, _REPORT_TAG)) is not None:
                self._receive(rank, message)
            while until is not None and self._heard[rank] < until:
                self._receive(rank, self._comm.mprobe(rank, _REPORT_TAG))
        whole = min(len(reports) for reports in self._reports.values())
        rows = []
        for _ in range(whole):
            each = [self._reports[rank].pop(0) for rank in range(self.size)]
            assert len({boundary for boundary, _ in each}) == 1, "all report of the same boundaries"
            rows.append((each[0][0], [counts for _, counts in each]))
        return rows

    def _receive(self, rank: int, message: Any) -> None:
        boundary, counts = message.recv()
        self._heard[rank] = boundary
        self._reports[rank].append((boundary, counts))

    def close(self) -> None:
        """Waits until what was told is on its way."""
        for request in self._requests:
            request.Wait()
        self._comm.Free()


class _Rows:
    """Turns reports into rows of the metrics file, on the first worker."""

    def __init__(self, position: Position, options: RunOptions, metrics: report.MetricsFile):
        self._start = position
        self._options = options
        self._metrics = metrics
        self._last = [Counts() for _ in range(options.workers)]
        self.status = ""
        self._diverged = False

    def write(self, boundary: int, now: Sequence[Counts]) -> None:
        start, batch, last = self._start, self._options.batch_size, self._last
        steps = sum(c.steps for c in now) - sum(c.steps for c in last)
        seconds = max(c.seconds for c in now)
        passed = sum(c.seconds for c in now) - sum(c.seconds for c in last)
        share = lambda total: (total(now) - total(last)) / passed if passed > 0 else 0.0
        means = {
            name: (sum(c.sums[name] for c in now) - sum(c.sums.get(name, 0.0) for c in last)) / max(steps, 1)
            for name in now[0].sums
        }
        distance = float(np.sqrt(np.mean([c.square_distance for c in now])))
        row = {
            "step": boundary,
            "examples": start.examples + sum(c.steps for c in now) * batch,
            "seconds": start.seconds + seconds,
            **means,
            "consensus_distance": distance,
            "examples_per_second": steps * batch * self._options.workers / passed if passed > 0 else 0.0,
            "data_wait_fraction": share(lambda counts: sum(c.data_wait for c in counts)),
            "late_fraction": (sum(c.late for c in now) - sum(c.late for c in last)) / max(steps, 1),
            "wait_fraction": share(lambda counts: sum(c.waited for c in counts)),
        }
        self._metrics.write(**row)
        self._last = list(now)
        self.status = (
            f"loss {row.get('loss', 0.0):.4f}  {row['examples_per_second']:,.0f} examples/s  "
            f"late {row['late_fraction']:.0%}  waiting {row['wait_fraction']:.0%}"
        )
        if not self._diverged and not np.isfinite([distance, row.get("loss", 0.0)]).all():
            self._diverged = True
            report.warn(f"loss or parameters are not finite at step {boundary}: a lower --learning-rate may help")


@dataclasses.dataclass
class _Clock:
    """The share of the training that is done, where only sync rounds tell how many steps all have taken.

    Attributes:
        per_round: Steps that all workers took per round, lately.
        known: Steps that all workers have taken, at the last sync round.
        round: That round.
    """

    per_round: float
    known: int
    round: int

    def sync(self, t: int, steps: int) -> None:
        self.per_round = steps / (t - self.round)
        self.known += steps
        self.round = t

    def steps(self, t: int) -> float:
        """About how many steps all have taken before round t."""
        return self.known + (t - 1 - self.round) * self.per_round


def run(
    options: RunOptions,
    work: Work,
    state: State,
    position: Position,
    exchange: Any,
    peers: Peers,
    metrics: report.MetricsFile,
    checkpoints: Checkpoints | None,
    warn_unreadable: Callable[[int], None] = lambda index: None,
) -> tuple[loop.Outcome, dict[str, float] | None]:
    """One worker's training from ``position`` to its end; called by all, each with its own exchange.

    Rows go to ``metrics`` on the first worker: when all have reported of a log point. With SIGTERM or the first SIGINT,
    at any worker, all end at the next sync round, with a checkpoint.

    Args:
        options: Those of the run.
        work: The script's part.
        state: This worker's.
        position: Where to begin.
        exchange: Of trees ``{"tree": ..., "tally": float32 [2]}``; closed in the end.
        peers: The other workers.
        metrics: Open for rows after ``position``.
        checkpoints: Where the first worker saves, or None.
        warn_unreadable: Told the indices of the first training examples that cannot be read.

    Returns:
        The outcome, its state's model the consensus; and the metrics of that model, unless it was not evaluated.
    """
    num_workers = options.workers
    schedule = exchange.schedule
    straggler, pause = stragglers.parse(options.straggler), stragglers.delay(options.straggler_kind)
    budget = options.step_budget(position.num_examples, position.first_example)
    # both count from where the run got this number of workers
    known = (position.examples - position.first_example) // options.batch_size
    clock = _Clock(num_workers, known, position.step - 1)
    counts, rows = Counts(), _Rows(position, options, metrics)
    model, opt_state, local = state
    logged = position.step // options.log_every
    evaluated = position.step // options.eval_every
    saved = position.step // max(options.checkpoint_every, 1)
    pending_steps, evaluation, stopped, at = 0, None, 0, position
    t, met = position.total_steps - 1, True
    metric_sums: list[dict[str, Any]] = []
    announced = finished = False
    started = said = time.perf_counter()

    def everyones_position(step: int) -> Position:
        everyone = peers.everyone(counts)
        steps = sum(c.steps for c in everyone)
        before = position.wait_seconds or (0.0,) * num_workers
        return dataclasses.replace(
            position,
            step=step,
            examples=position.examples + steps * options.batch_size,
            seconds=position.seconds + max(c.seconds for c in everyone),
            data_wait_seconds=position.data_wait_seconds + max(c.data_wait for c in everyone),
            late=position.late + sum(c.late for c in everyone),
            contributions=position.contributions + steps,
            max_staleness=max(position.max_staleness, *(c.staleness for c in everyone)),
            unreadable=tuple(sorted(set(position.unreadable).union(*(c.unreadable for c in everyone)))),
            wait_seconds=tuple(w + c.waited for w, c in zip(before, everyone, strict=True)),
        )

    def save(step: int) -> Position:
        at = everyones_position(step)
        if options.checkpoint_every:
            trees = {"model": model, "optimizer": opt_state, "strategy": {"local_steps": np.asarray(local, np.int32)}}
            items = {name: peers.stacked(tree) for name, tree in trees.items()}
            if checkpoints is not None:
                checkpoints.save(at, items)
        return at

    def done(t: int) -> bool:
        return clock.known >= budget if budget is not None else t + 1 >= position.total_steps

    def progress(t: int) -> float:
        """Steps of the schedule that are done after round t."""
        return t + 1 if budget is None else position.first_step + clock.steps(t + 1) / num_workers

    def tell(t: int, last: bool = False) -> None:
        nonlocal logged
        for step in metric_sums:
            for name, value in step.items():
                counts.sums[name] = counts.sums.get(name, 0.0) + float(value)
        metric_sums.clear()
        while logged < (t + 1) // options.log_every:
            logged += 1
            peers.tell(logged * options.log_every, counts)
        if last and (t + 1) % options.log_every:
            peers.tell(t + 1, counts)
        collect(t + 1 if last else None)

    def collect(until: int | None) -> None:
        for boundary, everyone in peers.reports(until):
            rows.write(boundary, everyone)

    batches = work.batches(local)
    with exchange, Interrupts() as interrupts, report.progress_bar() as bar:
        task = bar.add_task(options.algorithm, total=position.total_steps, completed=position.step, status="")
        ended = done(exchange.round)
        batch = None if ended else next(batches)
        started = time.perf_counter()
        while not ended:
            assert batch is not None
            inputs, lost = batch
            for index in set(lost.tolist()) - counts.unreadable:
                counts.unreadable |= {index}
                if len(counts.unreadable) <= loop.WARNINGS:
                    warn_unreadable(index)
            count = np.asarray(progress(exchange.round), np.int32)
            outgoing, opt_state, step_metrics = work.before(model, opt_state, inputs, count)
            waited = time.perf_counter()
            batch = next(batches)  # while the step is running
            waiting = time.perf_counter() - waited
            running = not loop.is_ready(step_metrics["loss"])
            counts.data_wait += 0.0 if running else waiting
            jax.block_until_ready(outgoing)
            if seconds := straggler.delays(options.seed, local, num_workers)[peers.rank]:
                pause(seconds)
            local, pending_steps = local + 1, pending_steps + 1
            if interrupts.received is not None and not announced:
                announced = True
                bar.console.print(f"{interrupts.received.name}: stopping at the next sync round; once more to stop now")
            tally = np.asarray([interrupts.received is not None, pending_steps], np.float32)
            averaged, info = exchange.average({"tree": outgoing, "tally": tally})
            model, opt_state = work.after(model, opt_state, averaged["tree"], count)
            metric_sums.append(step_metrics)
            counts.steps += 1
            counts.late += int(info.late)
            counts.staleness = max(counts.staleness, info.staleness)
            counts.waited += info.waited_seconds
            # by the round clock others may be ahead already; and a sync round after the end meets those who rest
            at_sync = info.is_sync and (budget is not None or info.round < position.total_steps)
            t = info.round if at_sync else exchange.round
            t = t if budget is not None else min(t, position.total_steps - 1)
            if at_sync:
                stop, steps = (np.asarray(averaged["tally"]) * num_workers).round().astype(int)
                clock.sync(t, int(steps))
                pending_steps = 0
                stopped = int(interrupts.received or -1) if stop else 0  # -1: by another's signal
            elif schedule.sync_period is None:
                stopped = int(interrupts.received or 0)
            # what all decide alike, at a sync round; others may be at the end already when this worker leaves that
            met = at_sync and (bool(stopped) or done(t))
            ended = met or bool(stopped) or done(exchange.round)
            if (t + 1) // options.log_every > logged or ended:
                counts.seconds = time.perf_counter() - started
                if at_sync:
                    counts.square_distance = float(work.square_distance(outgoing, averaged["tree"]))
                tell(t)
                shown = progress(t)
                bar.update(task, completed=min(shown, position.total_steps), status=rows.status)
                if not report.console.is_terminal and time.perf_counter() - said > _SAY_SECONDS and not ended:
                    said = time.perf_counter()
                    report.say(f"{options.algorithm} {shown:.0f}/{position.total_steps}  {rows.status}")
                started = time.perf_counter() - counts.seconds
            if not at_sync or met:
                continue
            evaluating = (t + 1) // options.eval_every > evaluated
            saving = options.checkpoint_every > 0 and (t + 1) // options.checkpoint_every > saved
            if not (evaluating or saving):
                continue
            counts.seconds = time.perf_counter() - started
            if evaluating:
                evaluated = (t + 1) // options.eval_every
                at = everyones_position(t + 1)
                collect(logged * options.log_every)  # all have reported so far
                values = work.evaluate(model)
                if peers.rank == 0:
                    metrics.write(step=t + 1, examples=at.examples, seconds=at.seconds, eval=values)
            if saving:
                saved = (t + 1) // options.checkpoint_every
                save(t + 1)
            started = time.perf_counter() - counts.seconds
        loop.close(batches)
        step = t + 1 if met else position.total_steps
        if not met:
            zeros = np.zeros(2, np.float32)
            model = exchange.consensus({"tree": model, "tally": zeros})["tree"]
        received = max(peers.everyone(stopped))
        if not met and received:
            step = min(max(peers.everyone(exchange.round)) + 1, position.total_steps)
        if counts.steps:
            at = save(step)
            tell(step - 1, last=True)
        finished = not received or (budget is None and step >= position.total_steps)
        if at.step == step and finished:
            evaluation = work.evaluate(model)
            if peers.rank == 0:
                metrics.write(step=step, examples=at.examples, seconds=at.seconds, eval=evaluation)
        bar.update(task, completed=bar.tasks[0].total if not stopped else bar.tasks[0].completed)
        if checkpoints is not None:
            checkpoints.wait()
    return loop.Outcome(State(model, opt_state, local), at, None if finished else received), evaluation
