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
        again: Whether a folder with this empty sign is taken: of a start that was killed before it wrote its options.
    """
    sign = out / OPTIONS_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        if again and sign.is_file() and not sign.stat().st_size:
            return True
        if any(out.iterdir()):
            return False
        sign.open("x").close()
    except OSError as problem:
        if isinstance(problem, FileExistsError) and out.is_dir():  # another run was faster
            return False
        raise ValueError(f"--out {out} cannot be made ({problem}): choose a folder that can") from None
    return True


def set_aside_ledgers(run: Path, step: int) -> None:
    """Moves away the ledgers of a run that begins anew at a step, as it starts new ones.

    If it has begun there before, and was killed before its first checkpoint, the ledgers of that start get a folder of
    their own.
    """
    ledgers = sorted(run.glob("ledger-*.jsonl"))
    if not ledgers:
        return
    name = f"ledger-before-{step}"
    folder = next(
        folder
        for number in itertools.count(1)
        if not (folder := run / (name if number == 1 else f"{name}-{number}")).exists()
    )
    folder.mkdir()
    for path in ledgers:
        path.rename(folder / path.name)
