"""Who speaks for a run of several processes, and where to."""

import sys

import pytest
from processes import run_all

from train import console


@pytest.fixture
def silent():
    console.set_speaker(False)
    yield
    console.set_speaker(True)


def test_the_first_process_speaks(capsys):
    console.say("[1] a line")
    assert capsys.readouterr().out == "[1] a line\n"
    assert not console.progress_bar().disable


@pytest.mark.usefixtures("silent")
def test_others_only_warn(capsys):
    console.say("a line")
    console.warn("[2] a warning")
    assert capsys.readouterr().out == "[2] a warning\n"
    with console.progress_bar() as bar:
        bar.update(bar.add_task("wagma", total=2, status="loss"), completed=1)
    assert capsys.readouterr().out == ""


def test_closed_output_is_no_output(tmp_path):
    code = f"from train import console; console.say('a'); print(open({str(tmp_path / 'file')!r}, 'w').fileno() > 2)"
    ((status, output),) = run_all([["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code]], timeout=60)
    assert (status, output) == (0, "")
    ((status, output),) = run_all([["sh", "-c", '"$0" -c "$1" <&- 2>&-', sys.executable, code]], timeout=60)
    assert (status, output) == (0, "a\nTrue\n")
