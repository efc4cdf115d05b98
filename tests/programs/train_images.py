"""Several runs of train.images over MPI, one after the other; the command lines come as JSON."""

import json
import sys

from train import run
from train.images import WORKLOAD

for command in json.loads(sys.argv[1]):
    prepared = run.prepare(WORKLOAD, run.parse(WORKLOAD, command))
    run.run(prepared)
    prepared.group.close()
