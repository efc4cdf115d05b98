import math

import numpy as np
import pytest
import reference

from wagma_jax import GroupSchedule

WORKERS = [
    n if n <= 24 or n in (31, 32, 36, 48, 61, 63, 64) else pytest.param(n, marks=pytest.mark.long) for n in range(1, 65)
]


def is_power_of_two(n):
    return n & (n - 1) == 0


@pytest.mark.parametrize("num_workers", WORKERS)
def test_every_group_size_partitions_and_mixes(num_workers):
    for group_size in range(1, num_workers + 1):
        schedule = GroupSchedule(num_workers, group_size)
        assert 1 <= schedule.period <= num_workers
        sequence = [schedule.groups(t) for t in range(schedule.period)]
        for t, groups in enumerate(sequence):
            assert sorted(w for group in groups for w in group) == list(range(num_workers))
            sizes = [len(group) for group in groups]
            assert len(groups) == math.ceil(num_workers / group_size)
            assert max(sizes) <= group_size
            assert max(sizes) - min(sizes) <= 1
            assert schedule.groups(t + 3 * schedule.period) == groups
        assert len(sequence) == 1 or sequence[0] != sequence[1]
        if group_size == 1:
            assert schedule.rounds_to_mix == (0 if num_workers == 1 else None)
            continue
        # the bound of the module docstring, from round 0, and the same for any window from any start
        from_start = reference.influence_rounds(sequence, num_workers)
        depth = math.ceil(math.log(num_workers) / math.log(group_size) - 1e-9)
        assert from_start <= depth + (0 if num_workers % group_size == 0 else 2)
        worst = max(reference.influence_rounds(sequence, num_workers, start) for start in range(len(sequence)))
        assert schedule.rounds_to_mix == worst <= 2 * from_start - 1
        contraction = reference.contraction(sequence, num_workers)
        assert contraction < 0.9
        assert schedule.contraction == pytest.approx(contraction, rel=1e-3, abs=1e-11)


@pytest.mark.parametrize(("p", "s"), [(p, s) for p in range(8) for s in range(p + 1)])
def test_powers_of_two_follow_the_butterfly(p, s):
    schedule = GroupSchedule(1 << p, 1 << s)
    for t in range(2 * schedule.period + 1):
        assert schedule.groups(t) == reference.butterfly_groups(1 << p, 1 << s, t)
    if s and p % s == 0:
        for start in range(schedule.period):
            window = [schedule.groups(start + i) for i in range(p // s)]
            assert reference.contraction(window, 1 << p) < 1e-12
    if s:
        for start in range(schedule.period):
            window = [schedule.groups(start + i) for i in range(math.ceil(p / s))]
            assert reference.influence_rounds(window, 1 << p) <= math.ceil(p / s)


@pytest.mark.parametrize(("base", "digits"), [(3, 2), (3, 3), (5, 2), (6, 2), (7, 2), (4, 3)])
def test_powers_of_the_group_size_reach_the_exact_mean(base, digits):
    schedule = GroupSchedule(base**digits, base)
    sequence = [schedule.groups(t) for t in range(digits)]
    assert reference.contraction(sequence, base**digits) < 1e-12


def test_group_of_agrees_with_groups():
    for arguments in [(8, 4), (12, 5), (7, 2), (1, 1), (9, 9)]:
        schedule = GroupSchedule(*arguments)
        for t in range(2 * schedule.period):
            for worker in range(schedule.num_workers):
                group = schedule.group_of(worker, t)
                assert worker in group
                assert group in schedule.groups(t)


def test_groups_without_rotation_stay_those_of_round_0():
    for arguments in [(8, 4), (12, 5)]:
        schedule = GroupSchedule(*arguments, rotate=False)
        assert schedule.period == 1
        assert schedule.groups(5) == schedule.groups(0) == GroupSchedule(*arguments).groups(0)
        assert schedule.rounds_to_mix is None
        assert schedule.contraction == pytest.approx(1)


def test_sync_rounds():
    schedule = GroupSchedule(8, 4, sync_period=3)
    assert [t for t in range(10) if schedule.is_sync(t)] == [2, 5, 8]
    assert all(GroupSchedule(8, 4, sync_period=1).is_sync(t) for t in range(5))
    assert not any(GroupSchedule(8, 4, sync_period=None).is_sync(t) for t in range(50))


def test_schedules_are_values():
    assert GroupSchedule(8, 4) == GroupSchedule(np.int64(8), np.int32(4))
    assert hash(GroupSchedule(8, 4)) == hash(GroupSchedule(8, 4))
    assert GroupSchedule(8, 4) != GroupSchedule(8, 4, rotate=False)


@pytest.mark.parametrize("group_size", [32, 33, 100])
def test_a_thousand_workers_are_partitioned_once(group_size):
    """Each grouping is built once and handed out again: a call costs a look-up, whatever the number of workers."""
    schedule = GroupSchedule(1024, group_size)
    for t in range(schedule.period):
        groups = schedule.groups(t)
        assert schedule.groups(t + 7 * schedule.period) is groups
        assert GroupSchedule(1024, group_size, sync_period=None).groups(t) is groups
        for worker in (0, 511, 1023):
            assert any(schedule.group_of(worker, t) is group for group in groups)


def test_describe_says_what_to_expect():
    text = GroupSchedule(8, 2, sync_period=10).describe(100_000_000)
    # 0.9 * 2 * 1/2 + 0.1 * 2 * 7/8 models
    for part in ("8 workers", "4 groups of 2", "after 3 rounds", "exact global mean", "every 10 rounds"):
        assert part in text
    assert "107.5 MB" in text
    assert "175.0 MB" in text
    assert "0.680 per round" in GroupSchedule(61, 2).describe()
    assert "never" in GroupSchedule(8, 1, sync_period=None).describe()
    assert GroupSchedule(1, 1).describe(0)
    with pytest.raises(ValueError, match="model_bytes"):
        GroupSchedule(8, 2).describe(-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": 0, "group_size": 1}, "at least 1, got 0"),
        ({"num_workers": -3, "group_size": 1}, "at least 1"),
        ({"num_workers": 8, "group_size": 0}, "between 1 and num_workers=8, got 0"),
        ({"num_workers": 8, "group_size": -2}, "between 1 and"),
        ({"num_workers": 8, "group_size": 9}, "got 9: pass 8"),
        ({"num_workers": 8.0, "group_size": 2}, "integer, got 8.0"),
        ({"num_workers": 8, "group_size": 2.5}, "integer, got 2.5"),
        ({"num_workers": "8", "group_size": 2}, "integer"),
        ({"num_workers": True, "group_size": 1}, "integer"),
        ({"num_workers": 8, "group_size": None}, "integer"),
        ({"num_workers": 8, "group_size": 2, "sync_period": 0}, "None for never"),
        ({"num_workers": 8, "group_size": 2, "sync_period": -1}, "None for never"),
        ({"num_workers": 8, "group_size": 2, "sync_period": 1.5}, "integer"),
        ({"num_workers": 8, "group_size": 2, "rotate": 1}, "True or False"),
    ],
)
def test_bad_arguments_say_what_to_pass(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupSchedule(**arguments)


def test_bad_rounds_and_workers():
    schedule = GroupSchedule(8, 2)
    for call in (schedule.groups, schedule.is_sync, lambda t: schedule.group_of(0, t)):
        with pytest.raises(ValueError, match="negative"):
            call(-1)
        with pytest.raises(ValueError, match="integer"):
            call(1.0)
    for worker in (-1, 8):
        with pytest.raises(ValueError, match="range"):
            schedule.group_of(worker, 0)
