"""The folder of a run: made and claimed at the start, kept in order when it goes on."""

import itertools
import time
from pathlib import Path

from train.options import OPTIONS_FILE, RunOptions


def new_folder(name: str, options: RunOptions) -> Path:
    """Makes the folder of the results, ``--out`` or a new one, and claims it.

    Raises:
        ValueError: ``--out`` holds anything already, or cannot be made.
    """
    default = Path("runs") / f"{name}-{options.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (default.with_name(f"{default.name}-{number}") for number in itertools.count(1))
    candidates = itertools.chain([default], numbered) if options.out is None else [options.out]
    for out in candidates:
        if _claim(out, options.resume_if_exists):
            return out
    raise ValueError(
        f"--out {options.out} exists and is not empty: choose another folder, remove it, or go on with the run in it "
        "by --resume"
    )


def _claim(out: Path, again: bool) -> bool:
    """Makes a folder, with an empty file of options as the sign of its owner; False if it holds anything already.

    Args:
        out: The folder.
        again: Whether a folder that holds this sign alone is taken: of a start that was killed at once.
    """
    sign = out / OPTIONS_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = list(out.iterdir())
        begun = {sign, sign.with_name(sign.name + ".new")}  # killed before or while it wrote its options
        if again and found and begun.issuperset(found) and (not sign.exists() or sign.stat().st_size == 0):
            return True
        if found:
            return False
        sign.open("x").close()
    except OSError as problem:
        if isinstance(problem, FileExistsError) and out.is_dir():  # another run was faster
            return False
        raise ValueError(f"--out {out} cannot be made ({problem}): choose a folder that can") from None
    return True


def set_aside_ledgers(options: RunOptions, step: int) -> None:
    """Moves away the ledgers of a run that goes on with other workers or another algorithm, as it starts new ones."""
    assert options.resume is not None
    folder = options.resume / f"ledger-before-{step}"
    for path in sorted(options.resume.glob("ledger-*.jsonl")):
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
