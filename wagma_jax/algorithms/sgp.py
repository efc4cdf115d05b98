"""SGP: push-sum along a directed exponential graph that changes every round (Assran et al., 2019)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wagma_jax.algorithms.base import Algorithm, Settings, Strategy, check_one_program, whole_model
from wagma_jax.algorithms.mixing import averaged, check, everyone_waits, transformation, wide, with_averaged
from wagma_jax.averaging import divided, without_sync
from wagma_jax.collectives import AxisName, received_sums
from wagma_jax.gossip import exponential
from wagma_jax.protocol.mixing import PushSum


@dataclasses.dataclass(frozen=True)
class SgpOptions:
    """The options that SGP alone has.

    Attributes:
        overlap: 1: what a worker sends in a round counts at its receiver in the next one, so that it may travel while
            gradients are computed; 0: in the same round.
    """

    overlap: int = 0

    def __post_init__(self):
        if self.overlap not in (0, 1):
            raise ValueError(f"overlap of sgp must be 0 or 1, got {self.overlap!r}: 0 does not overlap")


class SgpState(NamedTuple):
    """What a worker remembers beside the de-biased model z = x / w.

    Attributes:
        round: int32 scalar, the next round; equal on all workers.
        weight: float32 scalar, the push-sum weight w.
        sent: With overlap, what this worker sent in the round before: (shares of the averaged leaves of x, in the
            accumulation dtypes; the share of w). () without.
    """

    round: jax.Array
    weight: jax.Array
    sent: Any
    averages_models = True


def xla(settings: Settings) -> Strategy:
    """Algorithm 1 of the paper; with overlap algorithm 2 for a delay of one round, and every round sends.

    A worker holds x and w; its model is z = x / w, at which it takes gradients. In a round the step is added to x, and
    equal shares of (x, w) go to the next worker of ``gossip.exponential`` and stay. The sums of x and of w over all
    workers, and what is on its way, never change by a round: their quotient is the consensus. Without overlap all
    weights stay 1, since every worker receives as often as it sends. All wait for all they receive from.
    """
    check_one_program(settings)
    schedule, policy = exponential(settings.num_workers), without_sync(settings.policy)
    options = settings.options or SgpOptions()
    axis_name = settings.axis_name

    def init(tree):
        sent: Any = ()
        if options.overlap:
            sent = (jax.tree.map(jnp.zeros_like, wide(averaged(tree, policy))), jnp.zeros((), jnp.float32))
        return SgpState(jnp.full((), settings.first_round, jnp.int32), jnp.ones((), jnp.float32), sent)

    def combine(tree, before, state, late):
        del late
        check(tree, before, schedule, axis_name, policy)
        t, weight = state.round, state.weight
        stepped, began = wide(averaged(tree, policy)), wide(averaged(before, policy))
        # x + step = z * w + (new - z): exact where w is 1
        biased = [new + old * (weight - 1).astype(new.dtype) for new, old in zip(stepped, began, strict=True)]
        shares, kept = [divided(each, schedule.group_size) for each in biased], divided(weight, schedule.group_size)
        outgoing, sent = state.sent if options.overlap else (shares, kept)
        incoming = received_sums(outgoing, axis_name, schedule, t - options.overlap)
        # all workers have the same weight, and receive as many shares of it as they send: it need not travel
        weight = kept + (schedule.group_size - 1) * sent
        sums = [own + came for own, came in zip(shares, incoming, strict=True)]
        tree = with_averaged(tree, [each / weight.astype(each.dtype) for each in sums], policy)
        sent = (shares, kept) if options.overlap else ()
        return tree, SgpState(t + 1, weight, sent), everyone_waits(t)

    def share(tree, state):
        """Returns x and what is on its way: the mean over workers is the consensus, since all w add up to P."""
        others = schedule.group_size - 1
        own = [leaf * state.weight.astype(leaf.dtype) for leaf in wide(averaged(tree, policy))]
        return with_averaged(tree, [x + others * way for x, way in zip(own, state.sent[0], strict=True)], policy)

    return Strategy(schedule, init, combine, share if options.overlap else whole_model)


def mixing(options: SgpOptions | None) -> PushSum:
    """What is pushed."""
    return PushSum((options or SgpOptions()).overlap)


def mpi(settings: Settings, comm, tree):
    """Shares are sent after the step; with overlap they travel while the next gradient is computed."""
    return settings.gossip(comm, tree, exponential(comm.size), mixing(settings.options))


def sgp(
    inner: optax.GradientTransformation, num_workers: int, axis_name: AxisName = "data", overlap: int = 0
) -> optax.GradientTransformationExtraArgs:
    """SGP with any local optimizer: push-sum averaging of the models along a directed graph.

    Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019 (arXiv:1811.10792), algorithm 1;
    with overlap, algorithm 2. ``params`` are the de-biased ones, at which gradients are taken. Each worker needs
    ``params`` and a state of its own; where it may be used, and how exact it is, is as for
    :func:`wagma_jax.group_average`.

    Args:
        inner: The local optimizer. Gradients must be this worker's own: no ``pmean`` over the workers before it.
        num_workers: P.
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.
        overlap: 1: what is sent in a round counts at its receiver in the next one; 0: in the same round.

    Raises:
        ValueError: ``num_workers`` is below 1, or ``overlap`` neither 0 nor 1. From ``update``: without ``params``, the
            axis is not bound or has another size, or a floating leaf is replicated over it.
    """
    return transformation(inner, xla(Settings(num_workers, axis_name=axis_name, options=SgpOptions(overlap))))


ALGORITHM = Algorithm(
    "sgp",
    "SGP: push-sum along a directed exponential graph",
    "models",
    xla,
    mpi,
    SgpOptions,
    mixing=mixing,
    schedule=lambda settings: exponential(settings.num_workers),
)
