"""One of two MPI processes: mpi4jax and mpi4py, each on its own communicator."""

import jax
import jax.numpy as jnp
import mpi4jax
from mpi4py import MPI

comm = MPI.COMM_WORLD
models = comm.Dup()
result = mpi4jax.allreduce(jnp.full(3, 1.0 + comm.rank), op=MPI.SUM, comm=models)
jax.block_until_ready(result)
assert result.tolist() == [3.0, 3.0, 3.0]
assert comm.allgather(comm.rank) == [0, 1]
assert MPI.Query_thread() == MPI.THREAD_MULTIPLE
print(f"rank {comm.rank} of {comm.size} ok", flush=True)
