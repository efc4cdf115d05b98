"""How each peer averages a model of so many floats once: classes with ``barrier``, ``average`` and ``close``.

Every process makes one, with its rank, the number of processes and a free port of this machine. The model is in as many
leaves as parameters of a small network would be.
"""

# ruff: noqa: D102  (the module says what the methods do)
import collections
import contextlib
import datetime
import os
import time

LEAVES = 16
LATE_CALLS = 3
"""Calls in a row with one process late: some peers wait for the messages of a call in the next one."""


class Torch:
    """Processes joined by gloo, and parameters with gradients of zero."""

    def __init__(self, rank, size, port, floats):
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
        self.torch, self.dist, self.rank, self.size = torch, dist, rank, size
        self.params = [torch.nn.Parameter(torch.ones(floats // LEAVES)) for _ in range(LEAVES)]
        for param in self.params:
            param.grad = torch.zeros_like(param)  # parameters without one are left out

    def barrier(self):
        self.dist.barrier()

    def close(self):
        self.dist.barrier()
        self.dist.destroy_process_group()


class Allreduce(Torch):
    """gloo's allreduce of the gradients in one buffer, as data-parallel training has it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.flat = self.torch.ones(sum(param.numel() for param in self.params))

    def average(self):
        self.dist.all_reduce(self.flat)
        self.flat /= self.size


class PostLocalSgd(Torch):
    """``PostLocalSGDOptimizer``: the mean of all models at every step."""

    def __init__(self, *arguments):
        from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
        from torch.distributed.optim import PostLocalSGDOptimizer

        super().__init__(*arguments)
        averager = PeriodicModelAverager(period=1, warmup_steps=0)
        self.optimizer = PostLocalSGDOptimizer(self.torch.optim.SGD(self.params, lr=0.0), averager)

    def average(self):
        self.optimizer.step()


class Hierarchical(Torch):
    """``HierarchicalModelAverager``: the mean of fixed groups of two, and of all models hardly ever."""

    def __init__(self, *arguments):
        from torch.distributed.algorithms.model_averaging import hierarchical_model_averager as averagers

        super().__init__(*arguments)
        periods = collections.OrderedDict([(1, 2), (1_000_000, self.size)])
        self.averager = averagers.HierarchicalModelAverager(period_group_size_dict=periods, warmup_steps=0)

    def average(self):
        self.averager.average_parameters(self.params)


class DecentDp(Torch):
    """A step of ``DecentralizedDataParallel`` on a ring, which averages while it computes: both count."""

    def __init__(self, *arguments):
        import decent_dp.ddp

        super().__init__(*arguments)
        torch = self.torch

        class Model(torch.nn.Module):
            def __init__(self, params):
                super().__init__()
                self.params = torch.nn.ParameterList(params)

            def forward(self, x):
                return sum((param * x).sum() for param in self.params)

        optimizer = lambda named: torch.optim.SGD([x for pair in named for x in pair if torch.is_tensor(x)], lr=0.0)
        self.model = decent_dp.ddp.DecentralizedDataParallel(Model(self.params), optim_fn=optimizer, topology="ring")

    def average(self):
        self.model(self.torch.zeros(())).backward()


class TorchftLocalSgd(Torch):
    """``torchft.LocalSGD`` with a mean at every step; each process is a replica group of its own."""

    def __init__(self, *arguments):
        import torchft
        from torchft.local_sgd import LocalSGD

        super().__init__(*arguments)
        torch, address = self.torch, [None]
        if self.rank == 0:
            self.lighthouse = _lighthouse(self.size)
            address = [self.lighthouse.address()]
        self.dist.broadcast_object_list(address)
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        model = torch.nn.ParameterList(self.params)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        self.manager = torchft.Manager(
            pg=torchft.ProcessGroupGloo(timeout=datetime.timedelta(seconds=60)),
            min_replica_size=self.size,
            load_state_dict=model.load_state_dict,
            state_dict=model.state_dict,
            use_async_quorum=False,
            replica_id=f"worker-{self.rank}",
            store_addr="127.0.0.1",
            store_port=store.port,
            rank=0,
            world_size=1,
            lighthouse_addr=address[0],
            timeout=datetime.timedelta(seconds=60),
        )
        self.store, self.optimizer = store, optimizer
        self.wrapped = self._wrap(LocalSGD, model, optimizer)
        self.wrapped.__enter__()

    def _wrap(self, local_sgd, model, optimizer):
        return local_sgd(self.manager, model, optimizer, sync_every=1)

    def average(self):
        self.optimizer.step()

    def close(self):
        self.wrapped.__exit__(None, None, None)
        self.barrier()
        self.manager.shutdown(wait=False)
        super().close()


class TorchftDiloco(TorchftLocalSgd):
    """``torchft.DiLoCo`` with an outer step at every step."""

    def _wrap(self, local_sgd, model, optimizer):
        from torchft.local_sgd import DiLoCo

        outer = self.torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
        return DiLoCo(self.manager, [model], optimizer, outer, sync_every=1, pin_memory=False)


def _lighthouse(size):
    try:
        from torchft._torchft import LighthouseServer
    except ImportError:  # its name before
        from torchft import LighthouseServer
    return LighthouseServer(bind="[::]:0", min_replicas=size, join_timeout_ms=10_000)


class Hivemind(Torch):
    """hivemind's ``DecentralizedAverager`` in groups of two, found anew for every round."""

    def __init__(self, *arguments):
        import hivemind

        super().__init__(*arguments)
        addresses = [None]
        if self.rank == 0:
            self.dht = hivemind.DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
            addresses = [[str(address) for address in self.dht.get_visible_maddrs()]]
        self.dist.broadcast_object_list(addresses)
        if self.rank != 0:
            self.dht = hivemind.DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"], initial_peers=addresses[0])
        self.averager = hivemind.averaging.DecentralizedAverager(
            [param.detach().clone() for param in self.params],
            self.dht,
            prefix="model",
            target_group_size=2,
            min_matchmaking_time=1.0,
            request_timeout=0.5,
            start=True,
        )

    def average(self):
        from hivemind.averaging.partition import AllreduceException

        with contextlib.suppress(AllreduceException):  # nobody is left for who comes last, since the others are done
            self.averager.step(timeout=10)

    def close(self):
        self.barrier()
        self.averager.shutdown()
        self.dht.shutdown()
        super().close()


class Wagma:
    """``GroupExchange`` in rotating groups of two; under `wagma launch`."""

    def __init__(self, rank, size, port, floats):
        import jax.numpy as jnp
        from mpi4py import MPI

        import wagma_jax as wagma
        from wagma_jax.exchange.barrier import barrier

        self.comm = MPI.COMM_WORLD.Dup()
        self.wait_for_all = barrier
        self.params = {f"leaf {i}": jnp.ones(floats // LEAVES) for i in range(LEAVES)}
        self.exchange = wagma.GroupExchange(None, self.params, group_size=2, sync_period=None)

    def barrier(self):
        self.wait_for_all(self.comm)  # sleeps, as gloo's does: MPI's own takes a core from those that still compute
        begin = self.comm.bcast(time.monotonic() + 0.01)  # since who sleeps wakes some milliseconds after the others
        time.sleep(max(0.0, begin - time.monotonic()))

    def average(self):
        self.params, _ = self.exchange.average(self.params)

    def close(self):
        self.exchange.close()


PEERS = {
    "wagma_jax": Wagma,
    "gloo allreduce": Allreduce,
    "torch PostLocalSGDOptimizer": PostLocalSgd,
    "torch HierarchicalModelAverager": Hierarchical,
    "decent-dp": DecentDp,
    "torchft LocalSGD": TorchftLocalSgd,
    "torchft DiLoCo": TorchftDiloco,
    "hivemind": Hivemind,
}
