"""One process of two, each with two CPU devices, over jax.distributed and without MPI.

Arguments: coordinator address, process id, number of rounds with large arrays.
"""

import sys

import jax

coordinator, process_id, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(coordinator, 2, process_id, initialization_timeout=60)

import distributed_average  # noqa: E402
import distributed_large  # noqa: E402

distributed_average.check()
wrong = distributed_large.count_all_wrong(rounds)
jax.distributed.shutdown()
print(f"process {process_id}: {distributed_average.P} workers agree, {wrong} wrong results")
