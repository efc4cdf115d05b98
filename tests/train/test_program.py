"""Runs of a toy workload in one program: what they count, write, and leave behind."""

import json
import shutil

import jax
import numpy as np
import pytest
from processes import run_all

from tests.train import runs
from tests.train.toy import Toy
from train import devices, settings
from train.devices import mesh_of, worker_mesh
from wagma_jax.algorithms.sgp import SgpOptions
from wagma_jax.algorithms.wagma import WagmaOptions

KEYS = {
    "algorithm", "transport", "workers", "group_size", "sync_period", "clock", "seed", "steps", "unit", "examples",
    "examples_per_second", "wall_seconds", "wait_seconds", "late_fraction", "max_staleness", "eval",
    "data_wait_fraction", "consensus_distance", "processes", "devices", "options", "drawn",
}  # fmt: skip


@pytest.fixture(scope="module")
def wagma_run(tmp_path_factory):
    """A folder with a run that nobody changes, its summary and its rows."""
    out = tmp_path_factory.mktemp("wagma") / "run"
    return out, *runs.train(out, steps=8, late_probability=0.3, sync_period=4, picture=True)


@pytest.mark.parametrize("algorithm", ["wagma", "allreduce", "local", "dpsgd", "sgp"])
def test_a_run_leaves_its_results(algorithm, wagma_run, tmp_path):
    if algorithm == "wagma":
        out, summary, rows = wagma_run
    else:
        out = tmp_path / "run"
        summary, rows = runs.train(out, steps=8, algorithm=algorithm, late_probability=0.3, sync_period=4)
    files = {"checkpoints", "consensus", "metrics.jsonl", "options.json", "summary.json"}
    assert {path.name for path in out.iterdir()} == files | ({"training.png"} if algorithm == "wagma" else set())
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"4", "8"}
    assert [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] == rows
    written = json.loads((out / "summary.json").read_text())
    assert set(written) >= KEYS
    assert (written["examples"], written["unit"]) == (8 * 4 * 4, "rows")
    assert written["wait_seconds"] == [None] * 4
    assert written["eval"] == summary["eval"] == rows[-1]["eval"]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6, 8]
    assert [row["step"] for row in rows if "eval" in row] == [4, 8]
    assert (written["late_fraction"] > 0) == (written["max_staleness"] > 0) == (algorithm == "wagma")
    logged = [row["late_fraction"] for row in rows if "loss" in row]
    assert np.mean(logged) == pytest.approx(written["late_fraction"])
    # measured at sync rounds, and nowhere else
    distances = [row["consensus_distance"] for row in rows if "loss" in row]
    if algorithm in ("dpsgd", "sgp"):  # there are none
        assert distances == [None] * 4
        assert written["consensus_distance"] > 0
    else:
        assert [distance is None for distance in distances] == [algorithm != "allreduce", False] * 2
        assert (max(d for d in distances if d is not None) < 1e-6) == (algorithm == "allreduce")
        assert written["consensus_distance"] == distances[-1]
    assert written["drawn"] > 50  # what batches had to say, of all steps


def test_without_sync_rounds_the_distance_is_measured_when_models_are_evaluated(tmp_path):
    summary, rows = runs.train(tmp_path / "run", steps=8, sync_period=None)
    assert all(row["consensus_distance"] is None for row in rows if "loss" in row)
    assert all(row["consensus_distance"] > 0 for row in rows if "eval" in row)
    assert summary["consensus_distance"] == rows[-1]["consensus_distance"]


def test_devices_and_vmap_give_the_same_training(wagma_run, tmp_path, monkeypatch):
    """The same run, one worker a device and all in one vmap."""
    _, summary, on_devices = wagma_run
    assert summary["devices"] == 4
    monkeypatch.setattr(devices, "worker_mesh", lambda *arguments: None)
    summary, in_vmap = runs.train(tmp_path / "run", steps=8, late_probability=0.3, sync_period=4)
    assert summary["devices"] == 1
    for a, b in zip(on_devices, in_vmap, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert (a["consensus_distance"] is None) == (b["consensus_distance"] is None)
            assert (a["consensus_distance"] or 0) == pytest.approx(b["consensus_distance"] or 0, rel=1e-4)
        else:
            assert a["eval"]["error"] == pytest.approx(b["eval"]["error"], rel=1e-5)


def test_the_same_seed_gives_the_same_numbers(wagma_run, tmp_path):
    out, _, _ = wagma_run
    (trace := tmp_path / "late.csv").write_text("1,2\n")  # always late
    runs.train(tmp_path / "same", steps=8, late_probability=0.3, sync_period=4)
    runs.train(tmp_path / "other", steps=8, late_trace=str(trace), sync_period=4, seed=1)
    assert runs.summary(tmp_path / "other")["late_fraction"] == 6 / 8  # nobody is at a sync round
    assert runs.numbers(tmp_path / "same") == runs.numbers(out)
    assert runs.numbers(tmp_path / "other")[0]["loss"] != runs.numbers(out)[0]["loss"]


def test_workers_draw_different_numbers_and_a_step_draws_the_same_again(tmp_path):
    """The key of a step is that of (seed, step, worker): with the same rows, losses differ by what is drawn alone."""
    seen = []
    original = Toy.gradients

    def gradients(self, model, carry, batch, key):
        batch = {"x": batch["x"] * 0, "y": batch["y"] * 0}  # the loss is what was drawn, squared
        made = original(self, model, carry, batch, key)
        return made._replace(metrics={"loss": made.metrics["loss"], "drawn": made.metrics["loss"]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Toy, "gradients", gradients)
        for name, workers in (("one", 1), ("two", 2), ("again", 2)):
            options = {"group_size": 1, "noise": 1.0, "steps": 2, "log_every": 1}
            _, rows = runs.train(tmp_path / name, workers=workers, **options)
            seen.append([row["drawn"] for row in rows if "loss" in row])
    one, two, again = seen
    assert two == again
    assert one[0] != one[1]
    assert all(a != b for a, b in zip(one, two, strict=True))  # the mean of two different workers


def test_command_line(tmp_path):
    out = tmp_path / "cli"
    command = [*runs.COMMAND, "--workers", "9", "--group-size", "3", "--steps", "3", "--checkpoint-every", "0"]
    ((status, output),) = run_all([[*command, "--out", out]], environment={"COLUMNS": "120"}, timeout=100)
    assert status == 0, output
    assert "error" in output
    assert "rows/s" in output
    assert runs.summary(out)["devices"] == 1
    assert not (out / "checkpoints").exists()
    assert (out / "consensus").exists()
    before = (out / "summary.json").read_bytes()
    with pytest.raises(SystemExit, match="exists and is not empty: choose another folder, remove it, or go on with"):
        runs.main("--steps", "3", "--out", out)
    assert (out / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"steps": 0}, "--steps"),
        ({"batch_size": -1}, "--batch-size"),
        ({"meet_every": 0, "transport": "mpi"}, "--meet-every must be at least 1"),
        ({"late_probability": 1.0}, "--late-probability must be in"),
        (
            {"sgp": SgpOptions(overlap=1)},
            r"--sgp.\* is for --algorithm sgp, got .*overlap=1. with --algorithm w",
        ),
        ({"seed": -1}, "--seed"),
        ({"group_size": 5}, "group_size must be between 1 and num_workers=4, got 5"),
        ({"sync_period": 0}, "sync_period must be at least 1"),
        ({"learning_rate": -0.1}, "--learning-rate must be in"),
        ({"warmup": 1.0}, "--warmup must be in"),
        ({"steps": 3, "epochs": 1.0}, "say the same thing twice"),
        ({"steps": None, "epochs": 0.0}, "--epochs must be above 0"),
        ({"checkpoint_every": -1}, "--checkpoint-every must not be negative"),
        ({"resume_if_exists": True, "out": None}, "--resume-if-exists needs to know which run: give --out"),
        ({"coordinator": "host:1"}, "--coordinator, --processes and --process-id belong together"),
        ({"coordinator": "host", "processes": 2, "process_id": 0}, "--coordinator must be HOST:PORT"),
        ({"coordinator": "host:1", "processes": 2, "process_id": 2}, r"--process-id must be in \[0, 2\)"),
        ({"straggler": "rotating:0.1"}, "--straggler rotating:0.1 needs --transport mpi"),
        ({"clock": "round"}, "--clock round needs --transport mpi"),
        ({"quorum": 2}, "--quorum 2 needs --transport mpi"),
        ({"on_nonfinite": "skip"}, "--on-nonfinite skip needs --transport mpi"),
        (
            {"on_nonfinite": "skip", "transport": "mpi", "algorithm": "allreduce"},
            "--on-nonfinite skip is for algorithms that exchange models, got --algorithm allreduce",
        ),
        ({"meet_every": 2}, "--meet-every 2 needs --transport mpi"),
        ({"transport": "mpi"}, "got --workers 4 and 1 process: start with wagma launch -n 4"),
        ({"timeout_seconds": 0}, "--timeout-seconds must be above 0"),
        ({"transport": "mpi", "straggler": "often"}, "--straggler must be none, rotating:SECONDS"),
        ({"transport": "mpi", "straggler": "fixed:4:0.1"}, "--straggler names 5 workers, and there are 4"),
        ({"transport": "mpi", "late_probability": 0.1}, "where lateness is real: use --straggler"),
        ({"transport": "mpi", "late_trace": "slow-worker"}, "where lateness is real: use --straggler"),
        ({"wagma": WagmaOptions("steps")}, "weighting='steps' of wagma needs a process for each worker"),
        ({"wagma": WagmaOptions(quorum_seconds=0.1)}, "quorum_seconds=0.1 of wagma needs a process for each worker"),
        ({"wagma": WagmaOptions(late_merge="add")}, "late_merge='add' of wagma needs late workers"),
        ({"transport": "mpi", "coordinator": "host:1"}, "are for --transport xla: leave them out"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        runs.train(**{"steps": 8, "out": tmp_path / "run", **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("disable_jit", True, "since every step is compiled"),
        ("enable_x64", True, "since all numbers have 32 bits"),
        ("numpy_rank_promotion", "raise", "since the models broadcast"),
        ("numpy_dtype_promotion", "strict", "since losses and models mix dtypes"),
        ("transfer_guard_host_to_device", "disallow", "since batches come from NumPy"),
    ],
)
def test_settings_of_jax_for_other_programs_are_refused(name, value, reason, tmp_path, request):
    setting, variable = f"jax_{name}", f"JAX_{name.upper()}"
    before = jax.config.values[setting]
    before = "allow" if before is None else getattr(before, "value", before)
    request.addfinalizer(lambda: jax.config.update(setting, before))
    jax.config.update(setting, value)
    with pytest.raises(ValueError, match=rf"^{variable}={value} cannot be obeyed, {reason}.*: unset {variable}$"):
        runs.train(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_platforms_that_are_not_there_are_named(tmp_path, request):
    environment = {"JAX_PLATFORMS": "abacus"}
    ((status, output),) = run_all([[*runs.COMMAND, "--out", tmp_path / "run"]], environment=environment, timeout=60)
    assert status == 1
    assert "toy: JAX finds no device (Unable to initialize backend 'abacus': " in output
    assert output.rstrip().endswith(
        "): JAX_PLATFORMS=abacus must name what this host has, as in JAX_PLATFORMS=cpu, or be unset"
    )
    assert "Traceback" not in output
    jax.local_devices()  # found before the setting changes, as with a GPU and its name
    platforms = jax.config.values["jax_platforms"]
    request.addfinalizer(lambda: jax.config.update("jax_platforms", platforms))
    jax.config.update("jax_platforms", "cuda")
    with pytest.raises(ValueError, match=r"^JAX_PLATFORMS=cuda leaves out the CPU, .*: use JAX_PLATFORMS=cuda,cpu$"):
        settings.check_platforms(needs_cpu=True)
    settings.check_platforms(needs_cpu=False)


def test_shards_by_the_round_clock_are_what_somebody_has_asked_for():
    options = {"transport": "mpi", "clock": "round", "workers": 4}
    (note,) = runs.Options(sampling="shard", **options).notes()
    assert "examples of their shards count less" in note
    assert runs.Options(**options).notes() == []


def test_settings_of_wagma_alone():
    options = {"wagma": WagmaOptions("steps"), "workers": 4, "transport": "mpi"}
    assert runs.Options(**options).averaging_schedule().num_workers == 4
    with pytest.raises(ValueError, match="late_merge must be 'average' or 'add', got 'sum'"):
        WagmaOptions(late_merge="sum")
    patient = {"wagma": WagmaOptions(quorum_seconds=0.1), "workers": 4, "transport": "mpi"}
    assert runs.Options(quorum=2, **patient).averaging_schedule().num_workers == 4
    with pytest.raises(ValueError, match=r"quorum_seconds=0\.1 needs a quorum of at least 2, got quorum=1"):
        runs.Options(**patient).averaging_schedule()
    with pytest.raises(ValueError, match="quorum_seconds must be above 0, or None for as long as it takes, got -1"):
        WagmaOptions(quorum_seconds=-1)
    with pytest.raises(ValueError, match="weighting must be 'equal' or 'steps', got 'size'"):
        WagmaOptions("size")


def test_an_algorithm_has_options_and_a_state_of_its_own(tmp_path):
    """Both are kept for a resumed run: what is on its way in SGP is there again."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["--workers", 4, "--algorithm", "sgp", "--sgp.overlap", 1, "--steps", 8, "--checkpoint-every", 4]
    words += ["--log-every", 2]
    runs.command_line(*words, "--out", whole)
    assert runs.summary(whole)["options"]["sgp"] == {"overlap": 1}
    shutil.copytree(whole, broken)
    (broken / "summary.json").unlink()
    shutil.rmtree(broken / "checkpoints" / "8")
    runs.command_line("--resume", broken)
    assert runs.numbers(broken) == runs.numbers(whole)
    np.testing.assert_array_equal(runs.consensus(broken / "consensus"), runs.consensus(whole / "consensus"))
    plain, _ = runs.train(tmp_path / "plain", steps=8, algorithm="sgp")
    assert plain["options"]["sgp"] == {"overlap": 0}
    with pytest.raises(SystemExit):
        runs.command_line(*words[:4], "--sgp.overlap", 2, "--out", tmp_path / "no")


def test_epochs_need_an_end_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "units_per_epoch", None)
    with pytest.raises(ValueError, match=r"--epochs 1.0 has no meaning here, where data has no end: use --steps"):
        runs.train(tmp_path / "run", epochs=1.0)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/inside"):
        with pytest.raises(ValueError, match=r"cannot be made .*: choose a folder"):
            runs.train(tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


def test_worker_meshes():
    assert worker_mesh(8, "data").size == 8
    assert worker_mesh(3, "data").size == 3
    assert worker_mesh(9, "data") is None
    with pytest.raises(ValueError, match="--workers 4 cannot be spread evenly over 3 processes: use a multiple"):
        worker_mesh(4, "data", 3)


class TpuCore:
    """What a mesh needs of a device: cores of a TPU, which ``jax.make_mesh`` puts into an order of its own."""

    platform, device_kind, process_index = "tpu", "TPU v4", 0

    def __init__(self, number):
        self.id, self.coords, self.core_on_chip = number, (number % 2, number // 2, 0), 0

    def __repr__(self):
        return f"core {self.id}"


def test_devices_keep_the_order_in_which_they_are_given():
    cores = [TpuCore(number) for number in range(4)]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        given = [cores[number] for number in order]
        mesh = mesh_of(given, "data")
        assert list(mesh.devices) == given
        assert mesh.axis_names == ("data",)
