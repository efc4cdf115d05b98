"""`wagma doctor`: checks an installation, and says what to do about what fails.

Whatever may crash, hang or fail to load (the MPI library, mpi4jax's compiled part) runs in processes of its own with a
time limit: small programs first (``probes``), then ``checkup`` on every rank under `wagma launch` (``ranks``). These
return facts. What counts as a failure, and what to do about it, is decided in ``installation`` and ``between_ranks``.
Only ``checkup`` imports JAX and MPI.
"""
