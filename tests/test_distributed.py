"""Several processes without MPI give the same numbers."""

import os
import sys

from processes import ROOT, free_port, run_all

PROGRAM = ROOT / "tests" / "programs" / "distributed_average.py"


def test_two_processes_with_two_devices_each():
    address = f"127.0.0.1:{free_port()}"
    results = run_all(
        [[sys.executable, PROGRAM, address, "2", str(i)] for i in range(2)],
        environment={"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]), "XLA_FLAGS": ""},
        timeout=150,
    )
    for i, (status, output) in enumerate(results):
        assert status == 0, output
        assert f"process {i}: 4 workers agree" in output
