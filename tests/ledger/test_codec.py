"""Entries as JSON and back: one definition for writer and readers."""

import json
import typing

import pytest

from wagma_jax.ledger.codec import FormatError, decode, encode
from wagma_jax.ledger.entries import (
    KINDS,
    VERSION,
    Call,
    ConsensusCall,
    End,
    Entry,
    GlobalMean,
    Meet,
    Mixed,
    Offset,
    Round,
    Start,
    Swap,
    moments,
    span,
)

START = Start(1, 4, 2, 10, True, 1, "round", "skip", 30, "node", 5.25, -0.125, 1e-6)
CALL = Call(30, 6.0, 6.5, 7.0, 7.25, "late", 29, 29, {0: 0.25, 3: 0.125}, True)
ENTRIES = [
    START,
    START._replace(sync_period=None, clock="step"),
    Round(30, (0, 1), (30, 28), 6.5, 7.0),
    Mixed(5, (2, 0), False, 1.0, 1.5),
    Swap(3, 17, True, 40, 42, 30, 6.5, 7.0),
    GlobalMean(30, 8.0, 8.5),
    CALL,
    CALL._replace(merge="own", source=None, waits={}, began=39, version=41),
    CALL._replace(merge="own", source=None, waits={}),
    ConsensusCall(7.5, 7.75, 8.5, 8.75, 30),
    Meet(9.0, 9.5),
    Offset(10.0, -0.25, 1e-6),
    End(),
]


def test_every_kind_comes_back_as_it_was():
    assert {type(entry) for entry in ENTRIES} == set(typing.get_args(Entry)) == set(KINDS.values())
    for entry in ENTRIES:
        again = decode(json.loads(json.dumps(encode(entry))))
        assert type(again) is type(entry)  # tuples of different kinds may be equal
        assert again == entry


def test_lines_have_the_kind_and_the_fields_of_the_entry():
    assert encode(CALL) == {
        "kind": "call", "round": 30, "enter": 6.0, "ready": 6.5, "taken": 7.0, "leave": 7.25, "merge": "late",
        "source": 29, "base": 29, "waits": {"0": 0.25, "3": 0.125}, "nonfinite": True,
        "began": None, "version": None, "weight": None,
    }  # fmt: skip
    assert encode(Round(3, (0, 2), (3, -1), 1.0, 2.0)) == {
        "kind": "round", "round": 3, "group": [0, 2], "contributed": [3, -1], "begin": 1.0, "end": 2.0,
        "weights": [],
    }  # fmt: skip
    assert encode(Meet(1.0, 2.0)) == {"kind": "meet", "enter": 1.0, "leave": 2.0}
    assert encode(START)["version"] == VERSION


def test_seconds_are_rounded():
    line = encode(CALL._replace(enter=1.000000049, waits={0: 1 / 3}))
    assert (line["enter"], line["waits"]) == (1.0, {"0": 0.3333333})


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.kind)
def test_every_field_is_checked(entry):
    for name in entry._fields:
        line = encode(entry)
        if name != "version":
            with pytest.raises(ValueError, match=f"^expected .* in the field '{name}', got "):
                decode(line | {name: [{}]})
            del line[name]
            with pytest.raises(ValueError, match=f"^no field '{name}'$"):
                decode(line)


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        (CALL, {"taken": 5.0}, "enter, ready, taken, leave do not ascend"),
        (CALL, {"taken": float("nan")}, "do not ascend"),
        (
            CALL,
            {"merge": "none"},
            "expected 'own' or 'sum' or 'late' or 'mean' or 'added' or 'mixed' in the field 'merge', got 'none'",
        ),
        (CALL, {"round": None}, "expected an integer in the field 'round', got None"),
        (CALL, {"round": True}, "expected an integer"),
        (CALL, {"enter": "6.0"}, "expected a number"),
        (CALL, {"source": 1.5}, "expected an integer or null in the field 'source'"),
        (CALL, {"waits": {"zero": 1.0}}, "expected an object of ranks, each value a number, in the field 'waits'"),
        (CALL, {"kind": "clal"}, "unknown kind 'clal'"),
        (CALL, {"kind": ["call"]}, "unknown kind"),
        (START, {"rotate": 1}, "expected true or false in the field 'rotate'"),
        (START, {"clock": "wall"}, "expected 'step' or 'round' in the field 'clock'"),
        (START, {"group_size": 9}, "group_size must be between 1 and num_workers=4"),
        (Round(3, (0, 1), (3, 3), 1.0, 2.0), {"contributed": [3]}, "group and contributed do not fit"),
        (Round(3, (0, 1), (3, 3), 1.0, 2.0), {"contributed": [3, 4]}, "group and contributed do not fit"),
        (Round(3, (0, 1), (3, 3), 1.0, 2.0), {"group": [], "contributed": []}, "group and contributed do not fit"),
        (Round(3, (0, 1), (3, 3), 1.0, 2.0), {"group": [0, 1.0]}, "a list, each item an integer, in the field 'group'"),
        (Round(3, (0, 1), (3, 3), 1.0, 2.0, (1, 0)), {"weights": [1]}, "group and weights do not fit"),
        (Round(3, (0, 1), (3, 3), 1.0, 2.0, (1, 0)), {"weights": [0, 0]}, "group and weights do not fit"),
        (Round(3, (0, 1), (3, 3), 1.0, 2.0), {"begin": 2.5}, "begin, end do not ascend"),
        (Swap(3, 17, False, 4, 5, 3, 1.0, 2.0), {"sent": 5}, "version and sent do not fit"),
        (Meet(1.0, 2.0), {"leave": 0.5}, "enter, leave do not ascend"),
    ],
)
def test_what_no_entry_may_be_is_refused(entry, change, message):
    with pytest.raises(ValueError, match=message):
        decode(encode(entry) | change)


@pytest.mark.parametrize("version", [1, VERSION + 1, None])
def test_other_formats_are_refused(version):
    line = {"kind": "start", "version": version}  # whatever else it has
    with pytest.raises(FormatError, match=f"expected a ledger of format {VERSION}, got format {version}: read it with"):
        decode(line)


def test_moments_are_the_fields_with_points_in_time():
    assert moments(Call) == moments(ConsensusCall) == ("enter", "ready", "taken", "leave")
    assert moments(Round) == moments(Swap) == moments(GlobalMean) == ("begin", "end")
    assert moments(Meet) == ("enter", "leave")
    assert moments(Start) == moments(Offset) == ("time",)  # not the offset and its error
    assert moments(End) == ()
    assert span(CALL) == (6.0, 7.25)
    assert span(Meet(9.0, 9.5)) == (9.0, 9.5)
    assert Meet(9.0, 9.5).seconds == 0.5
