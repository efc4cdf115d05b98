"""Sizes and shapes of the models."""

import math

import pytest

from benchmarks.exchange.models import leaf_shapes, parse_size


def test_sizes_are_powers_of_ten():
    assert [parse_size(text) for text in ("4K", "64k", "1.5M", "2G", "17")] == [
        4000,
        64000,
        1500000,
        2 * 10**9,
        17,
    ]
    for text in ("", "M", "-1K", "many"):
        with pytest.raises(ValueError, match="positive numbers of bytes"):
            parse_size(text)


@pytest.mark.parametrize("elements", [500, 1000, 99_999, 100_000, 1_000_001])
def test_models_have_exactly_the_elements_asked_for(elements):
    sizes = [math.prod(shape) for shape in leaf_shapes(elements).values()]
    assert sum(sizes) == elements
    assert min(sizes) > 0
    assert len(sizes) == (64 if elements >= 100_000 else 4)
