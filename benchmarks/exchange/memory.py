"""How much memory an exchange takes: peaks of what is resident, and of what is allocated."""

import ctypes
import gc
import threading
import time
from pathlib import Path

import jax

from benchmarks.exchange.models import make_model
from benchmarks.exchange.ranks import World, make_exchange

Peaks = dict[str, dict[str, list[float]]]
"""For each phase "resident" and "allocated", in models beyond the user's own: one value for each rank."""


class Mallinfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


class Allocated:
    """The most bytes that this process had allocated since the last :meth:`reset`, sampled every millisecond."""

    def __init__(self):
        self._library = ctypes.CDLL(None)
        self._library.mallinfo2.restype = Mallinfo
        self._over = threading.Event()
        self._lock = threading.Lock()  # calls of the C library release the GIL
        self.peak = self.now()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def now(self) -> int:
        """Bytes in use, in all arenas."""
        info = self._library.mallinfo2()
        return info.uordblks + info.hblkhd

    def _sample(self) -> None:
        while not self._over.wait(1e-3):
            with self._lock:
                self.peak = max(self.peak, self.now())

    def reset(self) -> None:
        """Begins anew, from what is allocated now."""
        with self._lock:
            self.peak = self.now()

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join()


def measure_memory(world: World, group_size: int, size: int, late_seconds: float) -> Peaks:
    """Copies of the model that the exchange keeps beyond the user's own, in each phase of a run.

    The user's own are ``params`` while the exchange is constructed, and W' and the result in rounds.

    - resident: peak of resident memory (Linux: VmHWM). It includes compiled programs, and freed memory that glibc keeps
      for the next allocation, as ``wagma launch`` asks it to. So no phase shows less than the one before.
    - allocated: peak of what is allocated and not yet freed. It is sampled, so that copies may be missed that live for
      less than a millisecond.

    Args:
        world: All ranks.
        group_size: S.
        size: Elements of the model, float32.
        late_seconds: By how much one worker is late in the rounds with a late one.
    """
    model = 4 * size
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0.999, tree))
    jax.block_until_ready(step(make_model(size)))  # compiles
    gc.collect()
    allocated = Allocated()
    base, base_allocated = resident("VmRSS"), allocated.now()
    params = make_model(size)
    peaks: Peaks = {}

    def record(phase: str, users: int) -> None:
        """Notes the peaks of a phase, in which the user owns ``users`` models, and begins the next."""
        held, in_use = resident("VmHWM") - base, allocated.peak - base_allocated
        peaks[phase] = {
            "resident": world.gather(held / model - users),
            "allocated": world.gather(in_use / model - users),
        }
        reset_peak()
        allocated.reset()

    reset_peak()
    with make_exchange(world, params, group_size, sync_period=6) as exchange:
        record("construction", 1)
        params = exchange.params
        record("exchange.params", 2)
        for phase in ("nobody late", "one late each round"):
            for i in range(5):
                world.comm.Barrier()
                if phase != "nobody late" and i % world.size == world.rank:
                    time.sleep(late_seconds)
                params = jax.block_until_ready(step(params))
                params, _ = exchange.average(params)
            world.comm.Barrier()
            record(f"5 ordinary rounds, {phase}", 2)
            params = jax.block_until_ready(step(params))
            params, info = exchange.average(params)
            assert info.is_sync
            record(f"sync round after them ({phase})", 2)
        params = exchange.consensus(params)
        record("consensus", 2)
    allocated.close()
    return peaks


def resident(field: str) -> int:
    """Bytes resident now (VmRSS), or at the peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}: the section idle needs Linux")


def reset_peak() -> None:
    """Sets VmHWM to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
