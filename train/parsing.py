"""Reads a script's command line: its defaults come from a preset, a run to go on with, or a run to evaluate."""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from train.fields import declared
from train.options import OPTIONS_FILE, RunOptions
from train.transports import launchers

OptionsType = TypeVar("OptionsType", bound=RunOptions)


def parse(
    cls: type[OptionsType],
    prog: str,
    presets: Mapping[str, Mapping[str, Any]],
    cli: Callable[..., OptionsType],
    arguments: Sequence[str],
) -> OptionsType:
    """Reads a command line whose defaults come from ``--preset``, or from the run of ``--resume`` or ``--evaluate``.

    With ``--resume-if-exists`` and a run in ``--out``, ``--resume`` is that run.

    Args:
        cls: The script's options.
        prog: How the script is called.
        presets: By name, the defaults that differ from the usual ones.
        cli: ``tyro.cli``.
        arguments: The words of the command line.

    Raises:
        ValueError: A preset or run that does not exist, or both.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--preset", "--resume", "--evaluate", "--transport", "--out"):
        first.add_argument(name, nargs="?")
    first.add_argument("--resume-if-exists", action="store_true")
    try:
        found, _ = first.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    given = [name for name in ("preset", "resume", "evaluate") if getattr(found, name) is not None]
    if len(given) > 1:
        raise ValueError(f"--{' and --'.join(given)} exclude each other: each says where the options come from")
    if found.resume_if_exists:
        if found.resume or found.evaluate:
            raise ValueError(f"--resume-if-exists takes the run of --out: leave out --{given[0]}")
        if found.out and holds_run(Path(found.out)):
            # the run has kept the options of the preset
            return _resumed(cls, prog, cli, Path(found.out), _without_preset(arguments), found.transport)
    if found.resume:
        return _resumed(cls, prog, cli, Path(found.resume), arguments, found.transport)
    default = cls()
    if found.preset in presets:  # tyro reports unknown ones
        default = dataclasses.replace(default, **presets[found.preset])
    elif found.evaluate:
        default = options_of(cls, Path(found.evaluate))
    return _read(cls, prog, cli, default, arguments, found.transport, evaluating=bool(found.evaluate))


def holds_run(out: Path) -> bool:
    """Whether a folder holds a run that got as far as writing its options."""
    path = out / OPTIONS_FILE
    return path.is_file() and path.stat().st_size > 0


def _resumed(cls, prog, cli, run: Path, arguments: Sequence[str], transport: str | None):
    options = _read(cls, prog, cli, dataclasses.replace(cls.load(run), out=run), arguments, transport, resuming=True)
    return dataclasses.replace(options, resume=options.resume or run)


def _read(cls, prog, cli, default, arguments, transport, resuming=False, evaluating=False):
    if any(word.split("=")[0] in ("--epochs", "--steps") for word in arguments):  # the one given replaces the other
        default = dataclasses.replace(default, steps=None, epochs=None)
    fresh: dict[str, Any] = {"resume": None, "evaluate": None, "resume_if_exists": False}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    default = dataclasses.replace(default, **fresh, **({"preset": None} if "preset" in fields else {}))
    # these options of a run over MPI have no meaning in one program
    in_one_program = {name: fields[name].default for name, said in declared(cls).items() if said["mpi_only"]}
    if transport == "xla":
        default = dataclasses.replace(default, **in_one_program)
    size = launchers.mpi_processes(os.environ)
    if transport == "mpi" and (launcher := launchers.launched(os.environ)) is not None:
        size = launcher.processes  # srun counts too, although it may not speak MPI
    over_mpi = default.transport == "mpi" if resuming else size > 1 and not evaluating
    if transport != "xla" and (over_mpi or transport == "mpi"):
        workers = default.workers if resuming and size == 1 else size
        default = dataclasses.replace(default, transport="mpi", workers=workers)
    elif evaluating:
        default = dataclasses.replace(default, transport="xla", **in_one_program)
    return cli(cls, prog=prog, description=str(cls.__doc__).partition("\n")[0], args=list(arguments), default=default)


def _without_preset(arguments: Sequence[str]) -> list[str]:
    words = list(arguments)
    if "--preset" in words:
        at = words.index("--preset")
        del words[at : at + 2]
    return [word for word in words if not word.startswith("--preset=")]


def options_of(cls: type[OptionsType], path: Path) -> OptionsType:
    """The options of the run that a path belongs to, as ``find_options`` finds it.

    Raises:
        ValueError: There are none, or they are not of this class.
    """
    try:
        return cls.from_json(find_options(path))
    except TypeError as error:
        raise ValueError(f"{path} is of another script or version ({error})") from None


def find_options(path: Path) -> dict[str, Any]:
    """The options of the run that a path belongs to: its folder, a checkpoint in it, or an exported model.

    Raises:
        ValueError: There are none.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder: give a run, one of its checkpoints, or an exported model")
    for folder in (path, *path.absolute().parents[:2]):
        for name in (OPTIONS_FILE, "description.json"):
            try:
                values = json.loads((folder / name).read_text())
            except (OSError, json.JSONDecodeError):
                continue
            return values if name == OPTIONS_FILE else values["options"]
    raise ValueError(
        f"{path} belongs to no run: neither it nor the folders above it have {OPTIONS_FILE} or description.json; give "
        "a run, one of its checkpoints, or an exported model"
    )
