"""One rank under the launcher, without MPI: what it does is named by its first argument."""

import os
import signal
import sys
import time

rank = int(os.environ["OMPI_COMM_WORLD_RANK"])


def say(text):
    os.write(1, text.encode())


def output():
    say(f"half {rank} ")
    time.sleep(0.2)
    say("and half\n")
    say("".join(f"\r{percent}%" for percent in range(101)) + "\n")
    say(f"long {rank} " + "x" * 200_000 + "\n")
    os.write(2, f"to stderr {rank}\n".encode())
    for i in range(2000):
        say(f"line {i} of {rank}\n")
    say(f"stdin {rank}: {sys.stdin.read()!r}\n")
    for name in ("NPROC", "MALLOC_TOP_PAD_", "PYTHONUNBUFFERED", "OF_THE_USER"):
        say(f"{name}={os.environ.get(name)}\n")
    say(f"no newline {rank}")


def save():
    """Saves when told to end, and reports other signals."""
    asked = []

    def on_signal(number, frame):
        say(f"got {signal.Signals(number).name}\n")
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, on_signal)
    say(f"pid {os.getpid()}\n")
    while not set(asked) & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
        time.sleep(0.02)
    time.sleep(1)  # longer than mpirun itself would grant
    say("saved\n")


def stubborn():
    """Ignores the request to end."""
    signal.signal(signal.SIGTERM, lambda *_: say("got SIGTERM\n"))
    say(f"pid {os.getpid()}\n")
    while True:
        time.sleep(0.1)


def fail():
    """Rank 1 ends as the second argument says; the others would go on for long."""
    if rank == 1:
        say("the end of rank 1")
        code = int(sys.argv[2])
        if code < 0:
            os.kill(os.getpid(), -code)
        sys.exit(code)
    say(f"pid {os.getpid()}\n")
    time.sleep(200)


{"output": output, "save": save, "stubborn": stubborn, "fail": fail}[sys.argv[1]]()
