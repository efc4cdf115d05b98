"""The main job in one command: WAGMA-SGD beside Allreduce-SGD and local SGD, while one random worker is late each step.

Four processes train on the same digits in the same order, and are delayed alike: at every step another one, drawn
beforehand, takes longer. The first algorithm waits for nobody but at its sync rounds.
"""

import sys
import time
from pathlib import Path

from train import launched, report

ALGORITHMS = ("wagma", "allreduce", "local")
WORKERS = 4
DELAY = 0.1
OPTIONS = {
    "steps": 200,
    "eval_every": 20,
    "learning_rate": 0.2,
    "straggler": f"rotating:{DELAY}",
    "checkpoint_every": 0,
}


def main() -> None:
    """Trains with all three; prints a table and saves a picture."""
    out = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    runs = []
    for algorithm in ALGORITHMS:
        report.say(f"{algorithm}: {WORKERS} processes")
        folder = out / algorithm
        status = launched.images(WORKERS, {"algorithm": algorithm, **OPTIONS, "out": folder})
        if status:
            sys.exit(status)
        runs.append(report.results(folder))
    picture = out / "comparison.png"
    about = f"digits, {WORKERS} processes; at every step a random one is {1000 * DELAY:.0f} ms late"
    report.plot_comparison(picture, runs, about)
    report.console.print(report.summary_table([summary for summary, _ in runs], about))
    report.console.print(
        "S: workers in a group; sync: rounds between global means; waited: seconds per worker;\n"
        "late: contributions of an older model; accuracy: of the consensus model on 360 test images"
    )
    report.console.print(f"picture: {picture}")
    report.console.print(f"who waited for whom: wagma ledger {out / ALGORITHMS[0]}")


if __name__ == "__main__":
    main()
