"""The options of the benchmark."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        sizes: Model sizes in MB (10^6 bytes) of float32; each of the 8 workers owns such a model.
        group_sizes: S, powers of two.
        repeats: Passes over all candidates of a size, at most.
        seconds: Per size; no pass begins later than that, but at least 6 are made.
        seed: Of the order within each pass.
        bytes_only: Count bytes; measure no time.
        time_only: Measure time; count no bytes.
        sync_period: Of the counted programs, which take a global mean once in so many steps.
        platform: The counted programs are lowered for it: tpu, cuda or cpu.
        out: Folder for JSON, Markdown tables and pictures.

    Raises:
        ValueError: Options exclude each other, or a group size is not possible.
    """

    sizes: tuple[float, ...] = (1.0, 25.0, 100.0)
    group_sizes: tuple[int, ...] = (2, 4, 8)
    repeats: int = 40
    seconds: float = 240.0
    seed: int = 0
    bytes_only: bool = False
    time_only: bool = False
    sync_period: int = 10
    platform: str = "tpu"
    out: Path = Path("benchmarks/results")

    def __post_init__(self):
        if self.bytes_only and self.time_only:
            raise ValueError("bytes_only and time_only exclude each other: pass neither for both parts")
        if any(size not in (2, 4, 8) for size in self.group_sizes):
            raise ValueError(f"group_sizes must be 2, 4 or 8 of the 8 workers, got {self.group_sizes}")
