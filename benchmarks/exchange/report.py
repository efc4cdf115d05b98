"""What rank 0 prints and writes at the end of a section."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.exchange.ranks import World
from benchmarks.exchange.section import Section
from benchmarks.machine import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("jax", "mpi4jax", "mpi4py")
VARIABLES = ("MALLOC_", "GLIBC_", "XLA_", "NPROC", "OMPI_MCA_")


def report(
    world: World, section: Section, results: Any, tables: Sequence[str], draw: "Callable[[], Figure] | None" = None
) -> None:
    """Prints the tables; writes all samples and the picture.

    Args:
        world: All ranks; those other than 0 do nothing.
        section: What was measured.
        results: All samples, for JSON.
        tables: Markdown.
        draw: Makes the picture; None: there is none.
    """
    if world.rank != 0:
        return
    about = {
        **describe(PACKAGES, VARIABLES),
        "ranks": world.size,
        "mpi": world.library,
        "load_average_after": os.getloadavg(),
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in vars(section).items()},
    }
    path = section.out / f"exchange-{section.name}-{world.size}.json"
    section.out.mkdir(parents=True, exist_ok=True)
    document = {"about": about, "results": results, "tables": list(tables)}
    path.write_text(json.dumps(document, indent=1) + "\n")
    if draw is not None:
        draw().savefig(path.with_suffix(".png"), dpi=130)
    where = f"{world.size} ranks, S = {section.group_size}, {about['cpu_count']} cores"
    note = f"{where}, JAX {about['jax']}, {world.library}; a (b - c; d): median (quartiles; 95th percentile)."
    world.say("\n\n".join(["", note, *tables]))
    world.say(f"\nwritten to {path}")
