"""One of several MPI processes: runs of train.images one after the other, their command lines as JSON."""

import json
import sys

from train import images

for arguments in json.loads(sys.argv[1]):
    images.main(arguments)
