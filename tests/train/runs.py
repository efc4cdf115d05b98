"""Runs of the toy workload, and what they leave behind."""

import json
import subprocess
import sys
import time

from processes import ROOT

from tests.train.toy import WORKLOAD, Options
from train import run

TIMES = {"seconds", "examples_per_second", "data_wait_fraction", "wait_fraction"}
COMMAND = [sys.executable, "-m", "tests.train.toy"]
DEFAULTS = {"workers": 4, "batch_size": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 4}


def train(out, **options):
    """Summary and rows of a run."""
    return run.train(WORKLOAD, Options(**{**DEFAULTS, "out": out, **options}))


def command_line(*words):
    """The same from a command line."""
    return run.train(WORKLOAD, run.parse(WORKLOAD, [str(word) for word in words]))


def main(*words):
    run.main(WORKLOAD, [str(word) for word in words])


def numbers(out):
    """The rows of the metrics file, without times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def summary(out):
    return json.loads((out / "summary.json").read_text())


def consensus(path):
    """The weights of the consensus model of a run."""
    from tests.train.toy import Toy
    from train.resume import load_consensus
    from train.transports.group import Group

    return load_consensus(path, Toy(Options()).like, Group())["params"]["w"]


def started(command):
    return subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(process, condition, seconds=100):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None and not condition():
        time.sleep(0.002)


def stopped(command, condition, number, seconds=100):
    """Starts a run and stops it by a signal when a condition holds; what it has printed."""
    process = started(command)
    try:
        wait_for(process, condition, seconds)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    assert f"{number.name}: stopped at step" in output
    return output
