"""The signals that reach the ranks, and how they get through mpirun."""

import signal

STAND_INS = {
    signal.SIGTERM: signal.SIGXCPU,
    signal.SIGINT: signal.SIGPROF,
    signal.SIGHUP: signal.SIGVTALRM,
}
"""Signal that mpirun keeps for itself -> the one that is sent through mpirun in its place."""

MEANINGS = {stand_in: meant for meant, stand_in in STAND_INS.items()}
"""Signal that comes out of mpirun -> the one that the command gets instead."""

PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that mpirun forwards as they are."""

HINTS: dict[int, str] = {
    signal.SIGBUS: ": shared memory may be full, see df -h /dev/shm",
}
"""What is said beside the signal that has killed a rank."""
