"""Who speaks for a run of several processes."""

import pytest

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
