"""Shapes of made-up models."""

import math

import pytest

from benchmarks.shapes import model_shapes


def test_models_have_exactly_the_bytes_asked_for():
    for num_bytes in (4_000, 1_000_000, 25_000_000, 100_000_004):
        sizes = sorted(map(math.prod, model_shapes(num_bytes).values()))
        assert 4 * sum(sizes) == num_bytes
        assert len(sizes) == 64
        assert sizes[0] > 0
    assert sum(sizes[-4:]) > 0.89 * sum(sizes)
    with pytest.raises(ValueError, match="multiple of 4"):
        model_shapes(1_000_001)
