"""Two starts of the toy in the processes of one program; each argument is a command line.

The consensus that the first start exports is saved by process 0 alone. In the second start the disk of that process is
slow to make the folder of a checkpoint, so whoever does not wait for the folder writes into it before it is there.
"""

import os
import sys
import time

import jax

from tests.train.toy import WORKLOAD
from train import run
from train.transports.group import JaxGroup

SLOW_SECONDS = 1.0


def slow_to_make_checkpoints():
    make = os.mkdir

    def slow(path, *arguments, **options):
        if os.fspath(path).endswith("/all.orbax-checkpoint-tmp"):
            print("making the folder of a checkpoint", flush=True)
            time.sleep(SLOW_SECONDS)
        make(path, *arguments, **options)

    os.mkdir = slow


first, second = (words.split() for words in sys.argv[1:])
run.main(WORKLOAD, first)
group = JaxGroup(jax.process_count())  # processes cannot join twice
if group.is_first:
    slow_to_make_checkpoints()
with group.ending_together():
    run.run(run.prepare(WORKLOAD, run.parse(WORKLOAD, second), group))
