"""A training script in so far as a bench sees one: takes no time, and counts how often it is started.

``--steps 1`` fails, ``--pause`` sleeps, and with a learning rate above 1 the score is no number. JAX is imported only
by whoever asks for the workload.
"""

import itertools
import json
import sys
import time
from pathlib import Path


def options(words):
    return {word.removeprefix("--"): value for word, value in itertools.pairwise(words) if word[:2] == "--"}


def main(words):
    given = options(words)
    out = Path(given.get("out") or given["resume"])
    out.mkdir(parents=True, exist_ok=True)
    with out.with_name("starts").open("a") as starts:
        starts.write(f"{out.name} {'resumed' if 'resume' in given else 'new'}\n")
    (out / "options.json").write_text("{}")
    if given.get("steps") == "1":
        sys.exit("one step is not enough")
    time.sleep(float(given.get("pause", 0)))
    score = float(given.get("learning-rate", 0.1)) * (1 + 0.01 * int(given.get("seed", 0)))
    errors = {s: score * (2 - s / 4) if float(given.get("learning-rate", 0.1)) <= 1 else None for s in (2, 4)}
    rows = [{"step": s, "examples": 8 * s, "seconds": s / 4, "eval": {"error": errors[s]}} for s in errors]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {
        "wall_seconds": 1.0, "examples": 32, "examples_per_second": 32.0, "unit": "rows", "eval": rows[-1]["eval"],
        "wait_seconds": [None, None], "work_seconds": [None, None], "local_steps": [4, 4], "late_fraction": 0.0,
        "max_staleness": 0,
    }  # fmt: skip
    (out / "summary.json").write_text(json.dumps(summary))


def __getattr__(name):
    if name == "WORKLOAD":
        from tests.train.toy import WORKLOAD

        return WORKLOAD
    raise AttributeError(name)


if __name__ == "__main__":
    main(sys.argv[1:])
