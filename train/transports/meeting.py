"""Where the processes of one run meet: addresses that all can reach, and ports that are free.

Slurm tells processes of each other, but not where to meet. Process 0 takes a free port and tells the others. They find
it at one of a few ports that follow from the run's name: it listens at the first that is free, and answers only to
processes that give the same name, so that runs on one host never mix.
"""

import contextlib
import hashlib
import socket
import threading
import time

PLACES = 32
"""Ports at which process 0 may be found."""
_LOWEST, _PORTS = 20_000, 12_000  # below those that systems give to connections
_HELLO = "wagma meets"
_ANSWER_SECONDS = 2.0  # for whoever listens at a port to say that it is ours
_PAUSE = 0.1


def free_port() -> int:
    """A port at which nobody on this host listens."""
    with _listening(0) as server:
        return server.getsockname()[1]


def is_taken(port: int) -> bool:
    """Whether somebody on this host listens at the port."""
    try:
        _listening(port).close()
    except OSError:
        return True
    return False


def split(address: str) -> tuple[str, int] | None:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; None for anything else."""
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    return (host, int(port)) if host and port.isascii() and port.isdigit() and 0 < int(port) < 65536 else None


def join(host: str, port: int) -> str:
    """The address of a host and a port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def problem_with(host: str) -> str | None:
    """Why a host's name has no address here; None if it has one."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def lead(run: str, port: int, seconds: float) -> threading.Event:
    """Process 0 tells the others the port, in the background, as often as they ask: an answer may not reach them.

    Args:
        run: The run's name, which no other run at this time has.
        port: What they are to know.
        seconds: For how long.

    Returns:
        What is to be set once all have met: whoever asks then belongs to another start.

    Raises:
        OSError: None of the places is free.
    """
    server = None
    for place in _places(run):
        with contextlib.suppress(OSError):
            server = _listening(place)
            break
    if server is None:
        raise OSError(f"none of {PLACES} ports is free on this host")
    over = threading.Event()
    arguments = (server, run, port, time.monotonic() + seconds, over)
    threading.Thread(target=_serve, args=arguments, name="meeting", daemon=True).start()
    return over


def follow(run: str, host: str, seconds: float) -> int:
    """The port that process 0, on ``host``, has told.

    Raises:
        TimeoutError: It was not found.
    """
    end = time.monotonic() + seconds
    while True:
        for place in _places(run):
            answer = _ask(run, host, place)
            if answer is not None:
                return answer
        if time.monotonic() > end:
            raise TimeoutError(f"process 0 was not found on {host} within {seconds:.0f} s")
        time.sleep(_PAUSE)


def _places(run: str) -> list[int]:
    digest = int.from_bytes(hashlib.sha256(run.encode()).digest()[:8], "big")
    return [_LOWEST + (digest + i) % _PORTS for i in range(PLACES)]


def _listening(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _serve(server: socket.socket, run: str, port: int, end: float, over: threading.Event) -> None:
    with server:
        while (left := end - time.monotonic()) > 0 and not over.is_set():
            server.settimeout(min(left, _PAUSE))
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(_ANSWER_SECONDS)
                    if _line(connection) == f"{_HELLO} {run}":
                        connection.sendall(f"{_HELLO} {run} {port}\n".encode())


def _ask(run: str, host: str, place: int) -> int | None:
    with contextlib.suppress(OSError), socket.create_connection((host, place), _ANSWER_SECONDS) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        connection.sendall(f"{_HELLO} {run}\n".encode())
        name, _, port = _line(connection).rpartition(" ")
        if name == f"{_HELLO} {run}" and port.isdigit():
            return int(port)
    return None


def _line(connection: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n") and len(data) < 1000:
        part = connection.recv(1000)
        if not part:
            break
        data += part
    return data.decode(errors="replace").rstrip("\n")
