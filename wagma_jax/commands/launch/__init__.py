"""`wagma launch`: starts a command on several ranks, under the mpirun that belongs to the installed MPI.

``mpirun`` starts processes well, but what it does to their output and to signals is not what a training run needs:
unfinished lines of several ranks are glued together, a progress bar shows nothing before it ends, and SIGTERM kills
all ranks before they can save. So ``mpirun`` does not start the command itself but, on each rank, a relay
(``relay.py``), which

- connects the command's stdout and stderr to the launcher through pipes of their own if the launcher runs on the same
  machine. Ranks elsewhere write through mpirun, which tags their lines; the launcher takes the tags off again;
- turns the signals that mpirun forwards into those that it does not (SIGTERM, SIGINT, SIGHUP). The command has a
  process group of its own, so that it receives only the latter. If all relays run on the launcher's machine, they get
  signals from the launcher itself: mpirun passes none to a rank that it takes for not yet running;
- gives the rank a GPU of its own;
- ends as the command ends, and says which signal killed it.

Nothing here initializes MPI or imports JAX.
"""
