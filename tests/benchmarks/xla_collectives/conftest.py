"""Times that were never measured, and a small model."""

import pytest

from benchmarks.xla_collectives import byte_report, timing
from benchmarks.xla_collectives.candidates import LOWERINGS_OF, Candidate, Measured


@pytest.fixture
def measurements():
    """Under vmap, matrix takes twice as long as ppermute, and "auto" is matrix, a tenth slower by chance."""
    scale = {"pmean": 4.0, "consensus": 3.0, "auto": 2.2, "matrix": 2.0, "ppermute": 1.0}
    drift = [1.0, 3.0, 1.0, 2.0, 5.0, 1.0, 1.0]
    return [
        Measured(
            Candidate(context, 2 if name in ("auto", "matrix", "ppermute") else 8, name),
            "same" if name in ("auto", "matrix") else name,
            1e6,
            [1e-3 * factor * d for d in drift],
        )
        for context in LOWERINGS_OF
        for name, factor in scale.items()
    ]


@pytest.fixture
def small_model(monkeypatch):
    for module in (byte_report, timing):
        monkeypatch.setattr(module, "model_shapes", lambda _: {"kernel": (30, 30), "bias": (100,)})
