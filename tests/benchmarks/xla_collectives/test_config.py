"""Options that make no sense are refused."""

import pytest

from benchmarks.xla_collectives.config import Config


def test_config_is_checked():
    with pytest.raises(ValueError, match="exclude each other"):
        Config(bytes_only=True, time_only=True)
    with pytest.raises(ValueError, match="group_sizes"):
        Config(group_sizes=(3,))
