"""The trajectories of the algorithms in NumPy, written from their papers by loops over workers; nobody is late."""

import numpy as np

from wagma_jax.schedule import GroupSchedule


def reference(name, num_workers, steps, targets, overlap=0, sync_period=4, group_size=2):
    """The models [P, 3] after each step of SGD with rate 0.1 on each worker's quadratic around its target, from 0."""
    P, models = num_workers, []
    x, w = np.zeros((P, 3)), np.ones(P)
    hops = [2**k for k in range(20) if 2**k < P]  # SGP: worker i sends to i + 2^k
    on_way: list[tuple[int, np.ndarray, float]] = []  # (to, half of x, half of w)
    groups = GroupSchedule(P, min(group_size, P), sync_period)
    for t in range(steps):
        z = x / w[:, None]
        stepped = x - 0.1 * (z - targets)
        if name == "dpsgd":  # Lian et al., algorithm 1
            neighbours = [sorted({(i - 1) % P, i, (i + 1) % P}) for i in range(P)]
            x = np.array([x[n].mean(0) for n in neighbours]) - 0.1 * (x - targets)
        elif name == "sgp" and P > 1:  # Assran et al., algorithms 1 and 2
            new = [((i + hops[t % len(hops)]) % P, stepped[i] / 2, w[i] / 2) for i in range(P)]
            x, w = stepped / 2, w / 2
            for to, half, weight in on_way if overlap else new:
                x[to] += half
                w[to] += weight
            on_way = new
        elif name in ("allreduce", "eager"):
            x = x - 0.1 * (x - targets).mean(0)
        elif name in ("local", "wagma", "sgp"):
            x = stepped
            if name == "sgp":
                pass  # one worker
            elif (t + 1) % sync_period == 0:
                x = np.broadcast_to(x.mean(0), x.shape)
            elif name == "wagma":  # Li et al., algorithm 2
                x = x.copy()
                for group in groups.groups(t):
                    x[list(group)] = x[list(group)].mean(0)
        else:
            raise ValueError(name)
        models.append(x / w[:, None])
    return models
