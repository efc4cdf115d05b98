"""Allreduce-SGD: the mean gradient of all workers at every step, the synchronous baseline."""

import jax.numpy as jnp

from wagma_jax.averaging import AverageInfo
from wagma_jax.schedule import GroupSchedule
from wagma_jax.strategies import Algorithm, Settings, Strategy
from wagma_jax.transformations import allreduce_gradients


def xla(settings: Settings) -> Strategy:
    """Parameters stay equal without being averaged; statistics stay local, and the consensus model averages them."""
    mean = allreduce_gradients(settings.axis_name)

    def combine_models(model, state, late):
        del late  # nobody is: the mean waits for all
        never = jnp.zeros((), bool)
        return (
            model,
            state + 1,
            AverageInfo(round=state, is_sync=~never, late=never, staleness=jnp.zeros((), jnp.int32)),
        )

    return Strategy(
        GroupSchedule(settings.num_workers, settings.num_workers, 1),
        lambda model: jnp.zeros((), jnp.int32),
        lambda grads: mean.update(grads, mean.init(grads))[0],
        combine_models,
    )


def mpi(settings: Settings, comm, gradients):
    """Every round is a sync round."""
    return settings.exchange(comm, gradients, GroupSchedule(comm.size, comm.size, 1))


ALGORITHM = Algorithm("allreduce", "Allreduce-SGD: global gradient mean at every step", xla, "gradients", mpi)
