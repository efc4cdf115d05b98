"""The main job in one command: WAGMA-SGD beside Allreduce-SGD and local SGD, while one random worker is late each step.

Four processes train on the same digits, each on a shard of its own and in the same order, and are delayed alike: at
every step another one, drawn beforehand, takes longer. WAGMA-SGD and local SGD have no global mean before the end. At
a barrier every 20 steps all evaluate the mean of their models.
"""

import argparse
import sys
import time
from pathlib import Path

from train import console, pictures, results, starting
from train.task import Score

ALGORITHMS = ("wagma", "allreduce", "local")
WORKERS = 4
DELAY = 0.1
OPTIONS = {
    "steps": 200,
    "sync_period": 200,
    "meet_every": 20,
    "eval_every": 20,
    "sampling": "shard",
    "learning_rate": 0.2,
    "straggler": f"rotating:{DELAY}",
    "checkpoint_every": 0,
}
READING = (
    "What to see: WAGMA-SGD has the speed of local SGD, since nobody waits between barriers, and the accuracy of\n"
    "Allreduce-SGD, since groups mix the models in every step. Without global means, local SGD's models drift apart."
)


def main() -> None:
    """Trains with all three; prints a table and saves a picture."""
    parser = argparse.ArgumentParser(prog="python -m train.demo", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of models, data order and delays")
    seed = parser.parse_args().seed
    out = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    runs = []
    for algorithm in ALGORITHMS:
        console.say(f"{algorithm}: {WORKERS} processes")
        folder = out / algorithm
        status = starting.start(
            "train.images", WORKERS, {"algorithm": algorithm, **OPTIONS, "seed": seed, "out": folder}
        )
        if status:
            sys.exit(status)
        runs.append(results.results(folder))
    picture, score = out / "comparison.png", Score("accuracy", "%")
    about = f"digits, {WORKERS} processes; at every step a random one is {1000 * DELAY:.0f} ms late"
    pictures.plot_comparison(picture, runs, about, score)
    console.console.print(results.summary_table([summary for summary, _ in runs], about, score))
    console.say(READING)
    console.say(
        "S: workers in a group; sync: rounds between global means; waited: seconds per worker;\n"
        "late: contributions of an older model; accuracy: of the mean of all models on 360 test images"
    )
    console.say(f"picture: {picture}")
    console.say(f"who waited for whom: wagma ledger {out / ALGORITHMS[0]}")


if __name__ == "__main__":
    main()
