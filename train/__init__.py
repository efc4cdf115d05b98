"""Training scripts: workloads, the training loop, transports and results. Architectures of models are in ``models``."""

import importlib.util


def _is_installed(name: str) -> bool:
    """Whether a package is installed. It is not imported: some take long, and few scripts need all of them."""
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
