"""The consensus model alone, for others: a plain orbax checkpoint with a description inside."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.checkpoints import alone_options, check_layout
from train.jsonable import to_json
from train.pytrees import layout


def export(folder: Path, model: Any, description: dict[str, Any], files: Mapping[str, bytes] | None = None) -> None:
    """Writes a model without a worker axis as a plain orbax checkpoint, with description.json inside.

    Call it on one process. An older export at the same place is replaced once the new one is whole.

    Args:
        folder: The checkpoint.
        model: A pytree of NumPy arrays.
        description: What a reader needs to know to use it; anything that JSON has.
        files: The content of files that go beside it, by name.
    """
    import orbax.checkpoint as ocp

    folder = folder.absolute()
    fresh = folder.with_name(folder.name + ".new")
    with ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=alone_options()) as writer:
        writer.save(fresh, args=ocp.args.StandardSave(model), force=True)
    (fresh / "description.json").write_text(json.dumps(to_json(description), indent=2) + "\n")
    for name, content in (files or {}).items():
        (fresh / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def load_export(folder: Path, like: Any) -> Any:
    """Reads what :func:`export` wrote.

    Args:
        folder: The checkpoint.
        like: A tree of arrays or shapes that says what is expected.

    Raises:
        ValueError: It holds another model.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder.absolute()).item_metadata.tree
        check_layout(layout(_by_names(found)), layout(_by_names(like)), f"checkpoint {folder}")
        arrays = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        return checkpointer.restore(folder.absolute(), arrays)


def _by_names(tree: Any) -> Any:
    """Turns integer keys into strings, as orbax does on disk."""
    return {str(key): _by_names(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree
