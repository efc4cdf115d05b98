"""The steps of a start from arguments that all ranks agree on to an engine that is ready to run."""

from typing import NamedTuple

from mpi4py import MPI

from wagma_jax.exchange import finite, offsets, startup
from wagma_jax.exchange.engine import Engine
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.models import Models
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.wire import Wire
from wagma_jax.protocol.rounds import Rounds
from wagma_jax.protocol.rules import Outbox


class Prepared(NamedTuple):
    """What the steps have come to.

    Attributes:
        engine: Not started yet.
        data: The communicator of models.
        model: That this worker starts from: rank 0's, or that of the state.
        differs: Whether it is another than the arguments say.
    """

    engine: Engine
    data: MPI.Intracomm
    model: Buffers
    differs: bool


def prepare(gathering: Gathering, arguments: startup.Arguments) -> Prepared:
    """Takes the steps, together with all other ranks.

    Raises:
        ValueError: The model is not finite, but has to be.
        TimeoutError, ExchangeError: As ``Gathering.enter``.
    """
    schedule, staging, standing = arguments.schedule, arguments.staging, arguments.standing
    data = gathering.duplicate()
    wire = Wire(data, staging.device)
    model, differs = staging.pack(arguments.leaves), False
    if not arguments.resumes:
        model, differs = startup.broadcast(gathering, staging, model)
    published = model if arguments.published is None else arguments.published
    if arguments.on_nonfinite == "skip" and not (finite.is_finite(model) and finite.is_finite(published)):
        raise ValueError("params must be finite with on_nonfinite='skip', got NaN or infinity: start from others")
    startup.warm_up(gathering, wire, staging, schedule, model, arguments.leaves)
    if arguments.recorder is not None:
        arguments.recorder.add(startup.start_entry(arguments, gathering.rank, offsets.measure(gathering)))
        arguments.recorder.write(everything=True)  # without it what follows could not be read after a crash
    engine = Engine(
        Rounds(schedule, gathering.rank, arguments.quorum, arguments.clock),
        wire,
        gathering.comm,
        Models(schedule, staging, Outbox(standing.version, published)),
        standing.round + 1,
        arguments.recorder,
    )
    return Prepared(engine, data, model, differs)
