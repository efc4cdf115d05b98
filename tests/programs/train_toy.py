"""Several runs of the toy workload over MPI, one after the other; the command lines come as JSON."""

import json
import sys

from tests.train.toy import WORKLOAD
from train import run

for command in json.loads(sys.argv[1]):
    try:
        prepared = run.prepare(WORKLOAD, run.parse(WORKLOAD, command))
    except run.AlreadyCompleteError as complete:
        print(str(complete).replace("\n", " "))
        continue
    run.run(prepared)
    prepared.group.close()
