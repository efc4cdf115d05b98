"""The command line: ``python -m benchmarks.xla_collectives``."""

from typing import Annotated

import jax
import tyro
from rich.console import Console

import benchmarks.xla_collectives as package
from benchmarks.xla_collectives.byte_report import run_bytes
from benchmarks.xla_collectives.candidates import NUM_WORKERS
from benchmarks.xla_collectives.config import Config
from benchmarks.xla_collectives.time_report import run_time


def main(config: Config) -> None:
    """Runs both parts, or the one that is asked for."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", NUM_WORKERS)
    config.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not config.bytes_only:
        run_time(config, console)
    if not config.time_only:
        run_bytes(config, console)
    console.print(f"written to {config.out}", highlight=False)


if __name__ == "__main__":
    options = Annotated[Config, tyro.conf.FlagCreatePairsOff]
    main(tyro.cli(options, prog="python -m benchmarks.xla_collectives", description=package.__doc__))
