"""Two starts of the toy in the processes of one program; each argument is a command line."""

import sys

import jax

from tests.train.toy import WORKLOAD
from train import run
from train.transports.group import JaxGroup

first, second = (words.split() for words in sys.argv[1:])
run.main(WORKLOAD, first)
# processes cannot join twice
run.run(run.prepare(WORKLOAD, run.parse(WORKLOAD, second), JaxGroup(jax.process_count())))
