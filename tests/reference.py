"""A plain-NumPy reference of WAGMA's equations, to test `wagma_jax` against.

Written from the text of the design alone (section 1, "The algorithm", and section 3, "Public contract"),
without looking at the implementation: loops over workers and leaves, clarity over speed, float64 (or
complex128) inside.

Conventions: P workers; a *partition* is a sequence of groups, each a sequence of worker indices; a *model* is
a list of leaves, each an array with a leading worker axis, [P, ...]. Results of averaging are float64
(complex128 for complex leaves), whatever came in.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Partition = Sequence[Sequence[int]]
Leaf = np.ndarray
Model = list[Leaf]

POLICIES = ("mean", "keep", "sync")


# ----------------------------------------------------------------------------------------------------
# Who averages with whom
# ----------------------------------------------------------------------------------------------------


def butterfly_groups(num_workers: int, group_size: int, t: int) -> tuple[tuple[int, ...], ...]:
    """The groups of round t for powers of two, as a sorted tuple of sorted tuples.

    Section 1, "Rotating groups": with P = 2^p and S = 2^s, a group at round t is closed under XOR with the s
    consecutive butterfly masks

        1 << ((t*s + i) mod p),   i = 0..s-1.

    Each group is found as the closure of one worker: masks are applied until nothing new turns up.
    """
    p = _log2(num_workers, "num_workers")
    s = _log2(group_size, "group_size")
    if s > p:
        raise ValueError(f"group_size {group_size} exceeds num_workers {num_workers}")
    if t < 0:
        raise ValueError(f"round {t} is negative")
    masks = [1 << ((t * s + i) % p) for i in range(s)]

    def closure(worker: int) -> tuple[int, ...]:
        members = {worker}
        while True:
            grown = members | {member ^ mask for member in members for mask in masks}
            if grown == members:
                return tuple(sorted(members))
            members = grown

    return tuple(sorted({closure(worker) for worker in range(num_workers)}))


def mixing_matrix(groups: Partition, num_workers: int) -> np.ndarray:
    """The matrix M [P, P] of one ordinary round with nobody late: W = M @ W'.

    Section 1, "W = sum / S", with the actual group's size (section 3): M[i, j] = 1/len(group) if i and j are
    in the same group, else 0. M is symmetric and doubly stochastic.
    """
    _check_partition(groups, num_workers)
    matrix = np.zeros((num_workers, num_workers))
    for group in groups:
        for i in group:
            for j in group:
                matrix[i, j] = 1.0 / len(group)
    return matrix


def influence_rounds(list_of_partitions: Sequence[Partition], num_workers: int, start: int = 0) -> int | None:
    """How many rounds until every worker has influenced every other, None if not within 10 P rounds.

    The rounds use list_of_partitions[start], [start + 1], ..., cycling. Worker i has been influenced by
    itself at the beginning, and after a round by all that had influenced any member of its group. Section 1:
    for rotating groups with nobody late this is ceil(p/s), from any start. With P = 1 it is 0.
    """
    for partition in list_of_partitions:
        _check_partition(partition, num_workers)
    everybody = set(range(num_workers))
    influences = [{worker} for worker in range(num_workers)]  # [i]: those whose models entered worker i's
    for rounds in range(10 * num_workers + 1):
        if all(influence == everybody for influence in influences):
            return rounds
        after = list(influences)
        for group in list_of_partitions[(start + rounds) % len(list_of_partitions)]:
            union = set().union(*(influences[member] for member in group))
            for member in group:
                after[member] = union
        influences = after
    return None


def contraction(list_of_partitions: Sequence[Partition], num_workers: int) -> float:
    """The spectral norm ||M_{n-1} ... M_1 M_0 - J||_2, J = (1/P) ones, M_k the mixing matrix of partition k.

    One pass over the list with nobody late multiplies the distance to the consensus by at most this. Section
    1: it is 0 for rotating groups over p/s rounds when s divides p, as then the model after them is the
    global mean. It is 1 if the groups of the whole list together do not connect all workers, else below 1.
    """
    product = np.eye(num_workers)
    for partition in list_of_partitions:
        product = mixing_matrix(partition, num_workers) @ product
    return float(np.linalg.norm(product - np.full((num_workers, num_workers), 1.0 / num_workers), ord=2))


# ----------------------------------------------------------------------------------------------------
# The rounds
# ----------------------------------------------------------------------------------------------------


class RoundRecord(NamedTuple):
    """What happened at one round. `late` is what took effect: all False at a sync round. Arrays are [P]."""

    round: int
    is_sync: bool
    late: np.ndarray
    contributed: np.ndarray  # each contribution's version: the round it was published for, -1 for W_0
    staleness: np.ndarray  # round - contributed: 0 on time, 1 late


class LateRuleReference:
    """Rounds of all workers with simulated lateness (sections 1 and 3).

    Rounds t = 0, 1, 2, ... At each, the workers come with W'_t, the models after their local steps.

    *Ordinary round*, groups_of_round(t). Worker i contributes

        C_i = W'_t,i                                 on time
        C_i = i's previous publication               late: W'_{t-1,i}; the mean if t-1 was a sync round;
                                                           W_0,i at t = 0

    and with G its group, n = len(G), and sum = sum of C_j over j in G,

        W_i = sum / n                                on time
        W_i = (sum + W'_t,i) / (n + 1)               late
              sum / n + (W'_t,i - R_i)               late, with late_merge "add": R_i is what i's latest round
                                                     has returned, W_0,i before the first

    *Sync round*, (t + 1) % sync_period == 0 (never with sync_period None): lateness is ignored and
    W_i = mean of W'_t,j over all P workers.

    *Publication.* Every worker publishes W'_t at every round, late or not; at a sync round
    the mean replaces it.

    *Policy*, one word for each leaf: "mean" as above; "sync" is left as it came (W = W') at ordinary rounds
    and averaged at sync rounds; "keep" is always left as it came.

    *every = k*: `update` counts its calls and performs a round at calls k, 2k, 3k, ... (counted from 1); the
    calls between return W' unchanged, publish nothing, ignore `late`, and do not count as rounds.

    `history` has a RoundRecord for each round performed; `t` is the number of the next round.
    """

    def __init__(
        self,
        groups_of_round: Callable[[int], Partition],
        sync_period: int | None,
        num_workers: int,
        policy: Sequence[str],
        every: int = 1,
        late_merge: str = "average",
    ):
        if any(word not in POLICIES for word in policy):
            raise ValueError(f"policy {list(policy)} has a word that is not in {POLICIES}")
        if sync_period is not None and sync_period < 1:
            raise ValueError(f"sync_period {sync_period} is below 1")
        if every < 1:
            raise ValueError(f"every {every} is below 1")
        self.groups_of_round = groups_of_round
        self.sync_period = sync_period
        self.num_workers = num_workers
        self.policy = list(policy)
        self.every = every
        self.late_merge = late_merge
        self.history: list[RoundRecord] = []
        self.t = 0
        self.calls = 0
        self.published: Model | None = None  # each worker's newest publication
        self.returned: Model = []  # by each worker's latest round
        self.version = np.full(num_workers, -1)  # the round that it was published for

    def init(self, W0: Sequence[np.ndarray]) -> None:
        """Starts over at t = 0. W_0 is published as version -1 ("before the first activation", section 1)."""
        self.published = self._copy(W0)
        self.returned = self._copy(W0)
        self.version = np.full(self.num_workers, -1)
        self.history = []
        self.t = 0
        self.calls = 0

    def is_sync(self, t: int) -> bool:
        """(t + 1) % sync_period == 0 (section 1)."""
        return self.sync_period is not None and (t + 1) % self.sync_period == 0

    def update(self, W_prime: Sequence[np.ndarray], late: Sequence[bool] | np.ndarray | None = None) -> Model:
        """Performs a round on every `every`-th call; otherwise returns W' (a copy) and changes nothing."""
        self.calls += 1
        if self.calls % self.every == 0:
            return self.round(W_prime, late)
        return self._copy(W_prime)

    def round(self, W_prime: Sequence[np.ndarray], late: Sequence[bool] | np.ndarray | None = None) -> Model:
        """Performs round t on W'_t and returns W_t. Equations: see the class."""
        if self.published is None:
            raise RuntimeError("call init first")
        new = self._copy(W_prime)
        if [leaf.shape for leaf in new] != [leaf.shape for leaf in self.published]:
            raise ValueError("W_prime has other shapes than W0")
        is_late = np.zeros(self.num_workers, bool) if late is None else np.array(late, bool)
        if is_late.shape != (self.num_workers,):
            raise ValueError(f"late has shape {is_late.shape}, not ({self.num_workers},)")

        t = self.t
        if self.is_sync(t):
            is_late[:] = False
            result = self._sync_round(new)
            self.published = [leaf.copy() for leaf in result]
        else:
            for group in self.groups_of_round(t):  # nobody waits for a worker alone
                is_late[list(group)] &= len(group) > 1
            result = self._ordinary_round(new, is_late, self.groups_of_round(t))
            self.published = new
        contributed = np.where(is_late, self.version, t)
        self.version = np.full(self.num_workers, t)
        self.history.append(RoundRecord(t, self.is_sync(t), is_late, contributed, t - contributed))
        self.t = t + 1
        self.returned = [leaf.copy() for leaf in result]
        return result

    def _ordinary_round(self, new: Model, is_late: np.ndarray, groups: Partition) -> Model:
        assert self.published is not None
        _check_partition(groups, self.num_workers)
        result = []
        for word, fresh, old, begun in zip(self.policy, new, self.published, self.returned, strict=True):
            leaf = fresh.copy()
            if word == "mean":
                for group in groups:
                    total = np.zeros_like(fresh[0])
                    for member in group:
                        total = total + (old[member] if is_late[member] else fresh[member])
                    n = len(group)
                    for member in group:
                        if is_late[member] and self.late_merge == "add":
                            leaf[member] = total / n + (fresh[member] - begun[member])
                        elif is_late[member]:
                            leaf[member] = (total + fresh[member]) / (n + 1)
                        else:
                            leaf[member] = total / n
            result.append(leaf)
        return result

    def _sync_round(self, new: Model) -> Model:
        return [
            leaf.copy() if word == "keep" else _mean_to_all(leaf) for word, leaf in zip(self.policy, new, strict=True)
        ]

    def _copy(self, model: Sequence[np.ndarray]) -> Model:
        """Copies that share no memory with the caller's; what is averaged, in float64 or complex128."""
        if len(model) != len(self.policy):
            raise ValueError(f"{len(model)} leaves, but {len(self.policy)} policies")
        leaves = []
        for word, given in zip(self.policy, model, strict=True):
            leaf = np.asarray(given)
            if leaf.ndim == 0 or leaf.shape[0] != self.num_workers:
                raise ValueError(f"a leaf of shape {leaf.shape} has no leading axis of {self.num_workers} workers")
            if word == "keep":
                leaves.append(leaf.copy())
            elif _is_inexact(leaf):
                leaves.append(_wide(leaf))
            else:
                raise ValueError(f"a leaf of {leaf.dtype} cannot have the policy {word!r}")
        return leaves


def consensus(model: Sequence[np.ndarray]) -> Model:
    """The global mean over workers of every inexact leaf, given to all: [P, ...], rows equal. Others stay.

    Section 3: "global mean of float leaves".
    """
    return [_mean_to_all(leaf) if _is_inexact(leaf) else np.array(leaf) for leaf in model]


def consensus_distance(model: Sequence[np.ndarray]) -> float:
    """sqrt( (1/P) sum_i ||W_i - mean_j W_j||^2 ), the norm taken over all inexact leaves jointly.

    Section 3: "root mean square distance to the consensus".
    """
    squared = 0.0  # ||W_i - mean||^2, becomes [P]
    for leaf in model:
        if _is_inexact(leaf):
            wide = _wide(leaf)
            difference = np.abs(wide - _mean_to_all(wide))
            squared = squared + np.sum(difference.reshape(len(wide), -1) ** 2, axis=1)
    return float(np.sqrt(np.mean(squared)))


# ----------------------------------------------------------------------------------------------------
# Local steps: W' = W + U(gradient) (section 1)
# ----------------------------------------------------------------------------------------------------

# Everything below is elementwise, so arrays with a leading worker axis hold each worker's own optimizer state
# ("momentum and other optimizer state: stay local", section 1). Averaging never touches it. A gradient of
# None leaves its leaf alone.


class SGD:
    """W' = W - lr * g; optax.sgd(lr)."""

    def __init__(self, learning_rate: float):
        self.learning_rate = learning_rate

    def step(self, params: Sequence[np.ndarray], grads: Sequence[np.ndarray | None]) -> Model:
        """One local step of all workers; returns W'."""
        result = []
        for param, grad in zip(params, grads, strict=True):
            if grad is None:
                result.append(np.array(param))
                continue
            result.append(_wide(param) - self.learning_rate * _wide(grad))
        return result


class Momentum:
    """m <- g + momentum * m, from m = 0;  W' = W - lr * m;  optax.sgd(lr, momentum)."""

    def __init__(self, learning_rate: float, momentum: float):
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.trace: list[np.ndarray] | None = None

    def step(self, params: Sequence[np.ndarray], grads: Sequence[np.ndarray | None]) -> Model:
        """One local step of all workers; returns W'."""
        if self.trace is None:
            self.trace = [np.zeros(np.shape(param)) for param in params]
        result = []
        for k, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if grad is None:
                result.append(np.array(param))
                continue
            self.trace[k] = _wide(grad) + self.momentum * self.trace[k]
            result.append(_wide(param) - self.learning_rate * self.trace[k])
        return result


class Adam:
    """optax.adam(lr) with its defaults (Kingma and Ba 2015, eps outside of the root), real leaves.

    At step n = 1, 2, ...

    mu <- b1 mu + (1 - b1) g,   nu <- b2 nu + (1 - b2) g^2,   both from 0
    W' = W - lr * (mu / (1 - b1^n)) / (sqrt(nu / (1 - b2^n)) + eps)
    """

    def __init__(self, learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.count = 0
        self.mu: list[np.ndarray] | None = None
        self.nu: list[np.ndarray] | None = None

    def step(self, params: Sequence[np.ndarray], grads: Sequence[np.ndarray | None]) -> Model:
        """One local step of all workers; returns W'."""
        if self.mu is None or self.nu is None:
            self.mu = [np.zeros(np.shape(param)) for param in params]
            self.nu = [np.zeros(np.shape(param)) for param in params]
        self.count += 1
        result = []
        for k, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if grad is None:
                result.append(np.array(param))
                continue
            g = _wide(grad)
            self.mu[k] = self.b1 * self.mu[k] + (1 - self.b1) * g
            self.nu[k] = self.b2 * self.nu[k] + (1 - self.b2) * g**2
            mu_hat = self.mu[k] / (1 - self.b1**self.count)
            nu_hat = self.nu[k] / (1 - self.b2**self.count)
            result.append(_wide(param) - self.learning_rate * mu_hat / (np.sqrt(nu_hat) + self.eps))
        return result


# ----------------------------------------------------------------------------------------------------
# Helpers
# ----------------------------------------------------------------------------------------------------


def _log2(value: int, name: str) -> int:
    exponent = value.bit_length() - 1
    if value < 1 or value != 1 << exponent:
        raise ValueError(f"{name} {value} is not a power of two")
    return exponent


def _check_partition(groups: Partition, num_workers: int) -> None:
    if sorted(member for group in groups for member in group) != list(range(num_workers)):
        raise ValueError(f"{groups} is not a partition of range({num_workers})")


def _is_inexact(leaf: np.ndarray) -> bool:
    # By name, because NumPy does not count ml_dtypes' bfloat16 and float8 among its floats.
    return np.asarray(leaf).dtype.name.startswith(("float", "bfloat", "complex"))


def _wide(leaf: np.ndarray) -> np.ndarray:
    """A copy in float64, or complex128."""
    array = np.asarray(leaf)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _mean_to_all(leaf: np.ndarray) -> np.ndarray:
    """[P, ...] with every row the mean over workers."""
    wide = _wide(leaf)
    total = np.zeros_like(wide[0])
    for row in wide:
        total = total + row
    return np.stack([total / len(wide)] * len(wide))
