"""The doctor's steps over an exchange that tears models, differs after syncs, and waits."""

import sys

import numpy as np

from wagma_jax.commands.doctor import checkup


class Faulty(checkup.GroupExchange):
    """One element of a model is another's, one bit of a mean differs, and without sync rounds everybody waits."""

    def __init__(self, comm, params, **options):
        waits = {} if options["sync_period"] else {"quorum": options["group_size"]}
        super().__init__(comm, params, **options, **waits)

    def average(self, params):
        tree, info = super().average(params)
        if self.rank == 1 and self.schedule.sync_period and info.round in (3, 15):
            large = np.array(tree["large"])
            if info.round == 3:
                large[1234] = 77.0
            else:
                large = np.nextafter(large, np.float32(1e9))
            tree = tree | {"large": large}
        return tree, info


if __name__ == "__main__":
    checkup.GroupExchange = Faulty
    checkup.main(sys.argv[1:])
