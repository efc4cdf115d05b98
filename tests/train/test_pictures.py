"""What pictures of runs show, and what they must not: stale numbers, hidden differences, words of another task."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from train.pictures import plot_comparison, plot_runs
from train.task import Score

ACCURACY = Score("accuracy", "%")
PERPLEXITY = Score("perplexity", "", higher=False)
LENGTH = 40


class Saved(list):
    """Figures, and whether the axes of the next one are laid out."""

    laid_out = True


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, beside their files."""
    saved, save = Saved(), Figure.savefig

    def keep(figure, path, **options):
        saved.append(figure)
        if not saved.laid_out:
            figure.set_layout_engine("none")
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


@pytest.fixture
def draw(figures, tmp_path):
    """Draws with one of the two functions, and returns the axes; without laying them out, which takes longest."""

    def draw(function, *arguments, laid_out=False):
        figures.laid_out = laid_out
        function(tmp_path / "picture.png", *arguments)
        with Image.open(tmp_path / "picture.png") as image:
            assert image.width > 1000
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn
        return figures[-1].axes

    return draw


def rows(score="accuracy", first=0.1, last=0.99, seconds=20.0, every=1, **changes):
    """A run that comes close to its last score after a quarter of its time, measured and evaluated now and then."""
    result = []
    for step in range(1, LENGTH + 1):
        share = step / LENGTH
        row = {"step": step, "examples": 64 * step, "seconds": seconds * share}
        log = {"loss": 2 * math.exp(-4 * share), "examples_per_second": 1000.0}
        log["consensus_distance"] = 0.01 * step if step % 5 == 0 else None
        result.append(row | log | {key: value(step) for key, value in changes.items()})
        if every and step % every == 0:
            result.append(row | {"eval": {score: last - (last - first) * math.exp(-20 * share)}})
    return result


def summary(algorithm="wagma", **changes):
    return {
        "algorithm": algorithm, "unit": "images", "wall_seconds": 20.0, "examples_per_second": 1200.0,
        "wait_seconds": [1.0, 3.0], "eval": {"accuracy": 0.99},
    } | changes  # fmt: skip


def texts(axis):
    return [text.get_text() for text in axis.findobj(Text) if text.get_text()]


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def finite(line):
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    return x[np.isfinite(y)].tolist(), y[np.isfinite(y)].tolist()


def has_markers(line):
    return line.get_marker() not in ("", "None", None)


def test_a_run_shows_what_was_measured(draw):
    losses, scores, distances, rates = draw(
        plot_runs, {"wagma": rows(every=4)}, "title", ACCURACY, "images", laid_out=True
    )
    assert len(finite(losses.get_lines()[0])[0]) == LENGTH
    assert losses.get_yscale() == "log"
    x, y = finite(scores.get_lines()[0])
    assert x == [256.0 * k for k in range(1, 11)]
    assert y[-1] == pytest.approx(99.0, abs=1e-3)
    assert legend(scores) == ["wagma: 99.0 %"]
    line = distances.get_lines()[0]
    assert line.get_xdata().tolist() == [320.0 * k for k in range(1, 9)]  # joined, and no others in between
    assert line.get_ydata().tolist() == pytest.approx([0.05 * k for k in range(1, 9)])
    assert finite(rates.get_lines()[0])[1] == [1000.0] * LENGTH
    assert distances.get_ylim()[0] == rates.get_ylim()[0] == 0
    assert {axis.get_xlabel() for axis in (losses, scores, distances, rates)} == {"images seen by all workers"}
    assert rates.get_ylabel() == "images per second"
    assert scores.get_ylabel() == "accuracy (%)"


def test_a_run_that_diverges_leaves_the_others_to_be_seen(draw):
    loss = lambda step: 2.0 if step < 10 else 2.0 * 1e5 ** (step - 9) if step < 12 else None
    diverging = rows(loss=loss, consensus_distance=lambda step: None if step >= 12 else 0.1 * 1e3 ** max(0, step - 9))
    runs = {"diverging": diverging, "wagma": rows(), "local": rows(last=0.9)}
    losses, _, distances, _ = draw(plot_runs, runs, "", ACCURACY, "images")
    assert len(finite(losses.get_lines()[0])[0]) == 11  # a gap from there on
    assert losses.get_ylim()[1] == pytest.approx(10.0, rel=0.1)
    assert losses.get_ylim()[0] < 2 * math.exp(-4)
    assert distances.get_ylim() == pytest.approx((0, 0.8))
    assert "values up to 2e+10 lie above" in texts(losses)
    assert "values up to 1e+05 lie above" in texts(distances)
    colors = [[line.get_color() for line in axis.get_lines()] for axis in (losses, distances)]
    assert colors[0] == colors[1]
    assert len(set(colors[0])) == 3


def test_a_run_that_diverges_alone_is_shown_whole(draw):
    loss = lambda step: 1e30 if step == 1 else None
    losses, *_ = draw(plot_runs, {"x": rows(loss=loss)}, "", ACCURACY, "images")
    assert not [text for text in texts(losses) if "lie above" in text]


def test_a_large_distance_is_no_divergence(draw):
    """Allreduce keeps workers equal, and local SGD lets them drift apart: both are as they should be."""
    runs = {"allreduce": rows(consensus_distance=lambda step: 1e-7), "local": rows()}
    distances = draw(plot_runs, runs, "", ACCURACY, "images")[2]
    assert distances.get_ylim()[1] > 0.4


def test_runs_without_evaluation_or_distance(draw):
    run = rows(every=0, consensus_distance=lambda step: None)
    _, scores, distances, _ = draw(plot_runs, {"a": run, "b": run}, "", ACCURACY, "images")
    assert legend(scores) == ["a: not evaluated", "b: not evaluated"]
    for axis in (scores, distances):
        assert "not measured" in texts(axis)
        assert not len(axis.get_yticks())


def test_one_point_is_seen(draw):
    for axis in draw(plot_runs, {"a": rows()[4 * 2 : 5 * 2]}, "", ACCURACY, "images"):
        ((x, y), line) = finite(axis.get_lines()[0]), axis.get_lines()[0]
        assert (len(x), len(y)) == (1, 1)
        assert has_markers(line)
        assert axis.get_ylim()[0] < y[0] < axis.get_ylim()[1]


def test_a_task_of_its_own_has_its_own_words(draw):
    score = Score("mean_return", "points")
    axes = draw(plot_runs, {"a": rows("mean_return", 0.0, 1e6)}, "title", score, "environment steps")
    runs = [(summary(unit="environment steps", eval={}), rows("mean_return", 0.0, -5.0))]
    axes += draw(plot_comparison, runs, "title", score)
    words = [word for axis in axes for word in texts(axis)]
    assert not [word for word in words if "accuracy" in word or "image" in word or "%" in word]
    assert "mean return of the consensus model" in words
    assert "mean return (points)" in words
    assert "a: 1,000,000 points" in words
    assert "wagma: -5.000 points after 20 s" in words
    assert "environment steps per second" in words


def test_a_comparison_shows_all_three(draw):
    runs = [
        (summary(), rows()),
        (summary("allreduce", wall_seconds=60.0, examples_per_second=400.0), rows(seconds=60.0, last=0.992)),
        (summary("local", wait_seconds=[0.0, 0.0]), rows(last=0.95)),
    ]
    curves, rates, waits = draw(plot_comparison, runs, "title", ACCURACY, laid_out=True)
    assert legend(curves) == [
        "wagma: 99.0 % after 20 s", "allreduce: 99.2 % after 60 s", "local: 95.0 % after 20 s"
    ]  # fmt: skip
    long, ends = curves.get_lines()[::2], curves.get_lines()[1::2]
    for (_, run), line, end in zip(runs, long, ends, strict=True):
        evals = [row for row in run if "eval" in row]
        x, y = finite(line)
        assert x == [row["seconds"] for row in evals]
        np.testing.assert_allclose(y, [100 * row["eval"]["accuracy"] for row in evals])
        assert not has_markers(line)
        assert has_markers(end)
        assert finite(end) == (x[-1:], y[-1:])
    assert long[0].get_zorder() > long[1].get_zorder() > long[2].get_zorder()
    bottom, top = curves.get_ylim()
    assert 90 < bottom < 95
    assert 99.2 < top < 101
    assert curves.get_ylabel() == "accuracy (%); earlier values lie below"
    assert [bar.get_height() for bar in rates.patches] == [1200, 400, 1200]
    assert [bar.get_height() for bar in waits.patches] == [2, 2, 0]
    assert rates.get_ylim()[0] == waits.get_ylim()[0] == 0
    assert rates.get_ylabel() == "images per second"


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_of_the_last_two_thirds_is_hidden(draw, seed, higher):
    random = np.random.default_rng(seed)
    runs = []
    for _ in range(3):
        run = rows("x", 10 * random.normal(), random.normal(), seconds=random.uniform(5, 50))
        if seed == 2:  # one that falls back
            run[-19]["eval"]["x"] = -30.0 if higher else 30.0
        runs.append((summary(eval={}), run))
    axis = draw(plot_comparison, runs, "", Score("x", higher=higher))[0]
    bottom, top = axis.get_ylim()
    outside = 0
    for line in axis.get_lines():
        x, y = map(np.array, finite(line))
        late = y[x >= x[-1] / 3]
        assert ((late > bottom) & (late < top)).all()
        assert ((y < top) if higher else (y > bottom)).all()  # and nothing that is better
        outside += ((y < bottom) | (y > top)).sum()
    assert ("earlier" in axis.get_ylabel()) == (outside > 0)


def test_noise_does_not_fill_the_axis(draw):
    curves, *_ = draw(plot_comparison, [(summary(), rows(first=0.98, last=0.981))], "", ACCURACY)
    bottom, top = curves.get_ylim()
    assert top - bottom >= 4
    assert bottom < 98 < top
    assert curves.get_ylabel() == "accuracy (%)"


def test_lower_may_be_better(draw):
    run = rows("perplexity", 400.0, 12.0)
    curves, *_ = draw(plot_comparison, [(summary(eval={"perplexity": 12.0}), run)], "", PERPLEXITY)
    assert curves.get_ylim()[1] < 100
    assert curves.get_ylim()[0] < 12
    assert curves.get_ylabel() == "perplexity; earlier values lie above"
    assert legend(curves) == ["wagma: 12.00 after 20 s"]


def test_a_run_that_never_learns_is_shown(draw):
    runs = [(summary(), rows()), (summary("local"), rows(last=0.1))]
    curves, *_ = draw(plot_comparison, runs, "", ACCURACY)
    assert curves.get_ylim()[0] < 10
    assert curves.get_ylabel() == "accuracy (%)"


def test_waits_that_nothing_tells_are_no_zeros(draw):
    unknown = summary("xla", wait_seconds=[None, None])
    *_, waits = draw(plot_comparison, [(summary(), rows()), (unknown, rows())], "", ACCURACY)
    assert "?" in texts(waits)
    *_, waits = draw(plot_comparison, [(unknown, rows())], "", ACCURACY)
    assert "not measured" in texts(waits)


def test_a_comparison_without_rows_of_evaluation(draw):
    runs = [(summary(), rows(every=0)), (summary("local", eval={}), rows(every=0))]
    curves, *_ = draw(plot_comparison, runs, "", ACCURACY)
    assert legend(curves) == ["wagma: 99.0 % after 20 s", "local: no number after 20 s"]
    assert finite(curves.get_lines()[0]) == ([20.0], [99.0])
    assert has_markers(curves.get_lines()[0])


def test_a_score_that_is_no_number(draw):
    run = rows()
    run[-1]["eval"]["accuracy"] = None
    for name, function in (("wagma: no number", plot_runs), ("wagma: no number after 20 s", plot_comparison)):
        arguments = ({"wagma": run}, "", ACCURACY, "images")
        arguments = arguments if function is plot_runs else ([(summary(), run)], "", ACCURACY)
        axis = draw(function, *arguments)[1 if function is plot_runs else 0]
        assert legend(axis) == [name]


def test_many_runs_of_one_algorithm_have_a_bar_each(draw):
    _, rates, waits = draw(plot_comparison, [(summary(), rows())] * 7, "", ACCURACY)
    assert [bar.get_x() for bar in rates.patches] == sorted({bar.get_x() for bar in rates.patches})
    assert len(rates.patches) == len(waits.patches) == 7
