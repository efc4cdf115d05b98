"""Executes a recorded run again, in one process: asynchrony that can be debugged.

A worker's result depends only on its own steps and on the contributions in the results that it took. The ledger says
which these were. With the same steps the same parameters come out, bit for bit: sums are taken in the order of the wire
(``wire.sum_in_order``), and models are packed, merged and unpacked by the compiled functions of the exchange. Where a
model was not finite and was skipped, what stood for it does so again. Meetings change no values, so they are not
replayed. A module for each method of exchange: ``groups``, ``increments``, ``gossip`` and ``pairs``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wagma_jax.averaging import PolicyFunction
from wagma_jax.exchange.replay.gossip import GossipRun
from wagma_jax.exchange.replay.groups import GroupsRun
from wagma_jax.exchange.replay.increments import IncrementsRun
from wagma_jax.exchange.replay.pairs import PairsRun
from wagma_jax.exchange.replay.steps import Step, Steps
from wagma_jax.exchange.staging import Staging
from wagma_jax.ledger import RankLedger, Segment, read

_RUNS = {"groups": GroupsRun, "increments": IncrementsRun, "gossip": GossipRun, "pairs": PairsRun}


def replay(
    folder: Path | str,
    params: Any,
    local_step: Step,
    *,
    policy: PolicyFunction | None = None,
    segment: int | None = None,
    observe: Callable[[int, int, Any], None] = lambda rank, call, params: None,
    hand_in: Step = lambda rank, call, params: params,
) -> list[Any]:
    """Re-executes a recorded run from its ledgers.

    Args:
        folder: With the ledgers of all ranks, ``GroupExchange(..., ledger=folder)``.
        params: The parameters that all workers started from.
        local_step: Maps (rank, number of the call of ``average`` on that rank, from 0, params) to W', what that rank
            passed to this call. Called in order for each rank; the order between ranks is not that of the run. Whatever
            else a step has (an optimizer's state, say) it keeps for each rank by itself.
        policy: The per-leaf policy of the run.
        segment: Which part of a run that was resumed, from 0, with ``params`` as they were at its beginning; None:
            there is only one. Of averaging in pairs only the first can be executed again.
        observe: Called with (rank, number of the call, params) after each call of ``average``.
        hand_in: For a run of increments (``EagerExchange``), whose ``params`` here are what the last call returned:
            maps (rank, number of the call of ``consensus``, params) to the model that was passed to it. Where models
            are exchanged, that is taken to be what the last call returned.

    Returns:
        The parameters of every rank in the end: what its last call of ``average`` or ``consensus`` returned.

    Raises:
        ValueError: The ledgers cannot be read, lack a part of the run, or do not fit to ``params``.
    """
    parts = _segments(read(folder), segment)
    run: Any = _RUNS[parts[0].start.method]
    if segment and run.FIRST_ALONE:
        raise ValueError(
            f"a run in pairs goes on from a model of each rank, which no ledger has, got segment={segment}: pass "
            "segment=0"
        )
    return run(parts, Staging(params, policy), params, Steps(local_step, hand_in, observe)).execute()


def _segments(ledgers: Sequence[RankLedger], segment: int | None) -> list[Segment]:
    counts = {len(one.segments) for one in ledgers}
    if len(counts) != 1:
        raise ValueError(f"the ranks have recorded {sorted(counts)} parts of the run: pass the ledgers of a whole run")
    (count,) = counts
    if segment is None and count != 1:
        raise ValueError(f"the run was resumed, and has {count} parts: pass segment=0 to {count - 1}")
    if segment is not None and not 0 <= segment < count:
        raise ValueError(f"segment must be 0 to {count - 1}, got {segment}")
    return [one.segments[segment or 0] for one in ledgers]
