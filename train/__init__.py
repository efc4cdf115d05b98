"""Training scripts: data, loops and reports over the algorithms; a model's architecture is in ``models``."""

import importlib.util

_NEEDED = ("PIL", "flax", "grain", "matplotlib", "orbax", "rich", "sklearn", "tyro")
_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f"the training scripts need {', '.join(_missing)}, which the extra 'train' brings: run make setup in the "
        "project, or pip install 'wagma_jax[train]'"
    )
