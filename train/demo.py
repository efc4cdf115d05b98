"""The main job in one command: WAGMA-SGD beside Allreduce-SGD, on the same digits in the same order."""

import time
from pathlib import Path

from train import images, report

ALGORITHMS = ("wagma", "allreduce")


def main() -> None:
    """Trains both with 8 workers on virtual devices; prints a table and saves a picture of both curves."""
    out = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    summaries, curves = [], {}
    for algorithm in ALGORITHMS:
        options = images.Options(algorithm=algorithm, workers=8, steps=300, eval_every=25, out=out / algorithm)
        summary, rows = images.train(options)
        summaries.append(summary)
        curves[f"{algorithm}, groups of {summary['group_size']}"] = rows
    picture = out / "comparison.png"
    report.plot_runs(picture, curves, "handwritten digits, 8 workers: the same data in the same order")
    report.console.print(report.summary_table(summaries, "digits, 8 workers, the same data in the same order"))
    report.console.print(
        "S: workers in a group; sync: rounds between global means; accuracy: of the consensus model on 360 test images"
    )
    report.console.print(f"picture: {picture}")


if __name__ == "__main__":
    main()
