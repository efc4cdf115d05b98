"""A launcher is sent to the background of its terminal, where somebody then types: it goes on to its end."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time


def shell(terminal):
    """As a shell with job control: starts the launcher in the foreground, and takes the terminal back."""
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    process = subprocess.Popen(
        [sys.executable, "-m", "wagma_jax", "launch", "-n", "1", "--", "sh", "-c", "echo begun; sleep 1.5; echo over"],
        stdin=terminal,
        stdout=subprocess.PIPE,
        process_group=0,
        preexec_fn=lambda: os.tcsetpgrp(terminal, os.getpgrp()),
    )
    assert process.stdout
    assert process.stdout.readline() == b"[0] begun\n"
    os.tcsetpgrp(terminal, os.getpgrp())
    os.write(1, b"type\n")
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        _, status = os.waitpid(process.pid, os.WNOHANG | os.WUNTRACED)
        if os.WIFSTOPPED(status):
            process.kill()
            return f"it was stopped by signal {os.WSTOPSIG(status)}"
        if status or process.poll() is not None:
            break
        time.sleep(0.05)
    return process.stdout.read().decode()


def main():
    ours, theirs = pty.openpty()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 1)
        os.write(1, f"{shell(theirs)}\n".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert said.readline() == "type\n"
        os.write(ours, b"something\n")
        result = said.read()
    os.waitpid(pid, 0)
    assert result.strip() == "[0] over", result


main()
