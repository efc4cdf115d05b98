"""The steps of a start, from arguments that all ranks agree on to equal models."""

import functools
import platform
from collections.abc import Sequence
from typing import NamedTuple

from mpi4py import MPI

from wagma_jax.exchange import offsets, startup
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.wire import Wire
from wagma_jax.ledger.entries import Start


class Prepared(NamedTuple):
    """What the steps have come to.

    Attributes:
        data: The communicator of models.
        wire: Exchanges buffers over it.
        model: That this worker starts from: rank 0's, or that of the state.
        published: What it has published: the model, unless the state says otherwise.
        differs: Whether the model is another than the arguments say.
    """

    data: MPI.Intracomm
    wire: Wire
    model: Buffers
    published: Buffers
    differs: bool


def prepare(gathering: Gathering, arguments: startup.Arguments) -> Prepared:
    """Takes the steps, together with all other ranks.

    Raises:
        TimeoutError, ExchangeError: As ``Gathering.enter``.
    """
    staging = arguments.staging
    data = gathering.duplicate()
    model, differs = staging.pack(arguments.leaves), False
    if not arguments.resumes:
        model, differs = startup.broadcast(gathering, staging, model)
    published = model if arguments.published is None else arguments.published
    return Prepared(data, Wire(data, staging.device), model, published, differs)


def exchange_once(gathering: Gathering, wire: Wire, exchanges: Sequence[tuple[tuple[int, ...], int, Buffers]]) -> None:
    """Compiles exchanges and makes each of them once, so that no round waits for a compiler; all ranks call it.

    Args:
        gathering: Of all ranks.
        wire: Exchanges the buffers.
        exchanges: The group of this rank, a round that is the same in the whole group, and buffers, for each.
    """
    for group, _, buffers in exchanges:
        wire.prepare(group, buffers)
    gathering.barrier()  # before anybody waits inside of an exchange
    for group, t, buffers in exchanges:
        exchange = functools.partial(wire.exchange, group, 1, (t, -1), buffers, wire.memory(buffers))
        gathering.run(exchange)
        del exchange


def gather_once(gathering: Gathering, wire: Wire, groups: Sequence[tuple[int, ...]]) -> None:
    """Compiles the gathering of integers in groups and makes each once, as ``exchange_once``; all ranks call it.

    Args:
        gathering: Of all ranks.
        wire: Gathers the integers.
        groups: Of this rank, in an order that is the same on all ranks.
    """
    for group in groups:
        wire.prepare_gather(group)
    gathering.barrier()
    for group in groups:
        gathering.run(functools.partial(wire.gather, group, 0))


def record_start(gathering: Gathering, arguments: startup.Arguments) -> None:
    """Writes the first entry of the ledger, if there is one; all ranks call it."""
    if arguments.recorder is None:
        return
    offset = offsets.measure(gathering)
    start = Start(
        rank=gathering.rank,
        **arguments.own.recorded(),
        first_round=arguments.standing.round + 1,
        host=platform.node(),
        **offset._asdict(),
    )
    arguments.recorder.add(start)
    arguments.recorder.write(everything=True)  # without it what follows could not be read after a crash
