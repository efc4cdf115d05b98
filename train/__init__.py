"""Training scripts: data, loops and reports over the strategies; a model's architecture is in ``models``."""

import importlib.util


def _is_installed(name: str) -> bool:
    """Whether there is a package; it is looked up, not imported, since some take long and few scripts need all."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


_NEEDED = ("PIL", "flax", "google.protobuf", "grain", "matplotlib", "orbax", "rich", "sklearn", "tyro")
_missing = [name for name in _NEEDED if not _is_installed(name)]
if _missing:
    raise ImportError(
        f"the training scripts need {', '.join(_missing)}, which the extra 'train' brings: run make setup in the "
        "project, or pip install 'wagma_jax[train]'"
    )
