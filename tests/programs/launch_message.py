"""Two ranks exchange a message; each says where it runs."""

import os
import socket

from mpi4py import MPI

comm = MPI.COMM_WORLD
peer = (comm.rank + 1) % comm.size
came = comm.sendrecv(f"greetings from {socket.gethostname()}", dest=peer, source=peer)
network = os.stat("/proc/self/ns/net").st_ino
passed = os.environ.get("WAGMA_OF_THE_USER")
print(f"on {socket.gethostname()}, network {network}: {came}, {passed}, {os.environ['NPROC']}", flush=True)
