"""What gossip pushes and how it mixes: D-PSGD and push-sum as formulas, and records of opaque models.

A formula is written once, for one element of a model. ``compute`` applies it: to buffers in a run, to symbols in a
model checker. No model is changed in place.

A worker's trainer takes a model and hands in W', which counts as the step ``W' - taken``. So whatever its engine has
mixed meanwhile, while it rested, is kept. The sum of all x, with what is on its way, changes by the steps alone, and
that of all w never.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

Compute = Callable[..., Any]
"""Maps (formula, *numbers, *models) to what the formula gives, element by element; shares have a dtype of their own."""


class Held(NamedTuple):
    """What one worker holds.

    Attributes:
        model: z = x / w; what the trainer takes after a round. Without push-sum w is 1.
        taken: What the trainer has taken last.
        weight: w.
        kept: The share of (x, w) that stays, once the others are pushed; None before.
    """

    model: Any
    taken: Any
    weight: Any = 1
    kept: "Share | None" = None


class Share(NamedTuple):
    """A share of (x, w): what is pushed.

    Attributes:
        model: Of x.
        weight: Of w.
    """

    model: Any
    weight: Any


class Mixing(Protocol):
    """What is pushed and how it is mixed. ``early`` and ``lag`` are those of the machine, ``gossip.Gossip``.

    Attributes:
        early: Whether ``push`` needs no step.
        wide: Whether what is pushed has the dtypes of sums; else those of the model.
    """

    early: ClassVar[bool]
    wide: ClassVar[bool]

    @property
    def lag(self) -> int:
        """Rounds after which a push counts."""
        ...

    def push(self, held: Held, stepped: Any, parts: int, compute: Compute) -> tuple[Held, Share]:
        """The share that goes to every receiver.

        Args:
            held: Before.
            stepped: W'; None for a worker that rests, or where it is not needed.
            parts: The number of receivers, and one.
            compute: Applies formulas.
        """
        ...

    def mix(self, held: Held, stepped: Any, came: Sequence[Share], parts: int, compute: Compute) -> Held:
        """What is held after a round, whose model the trainer takes if it has stepped.

        Args:
            held: After ``push``.
            stepped: W'; None for a worker that rests.
            came: What counts in the round.
            parts: The number of models that are mixed.
            compute: Applies formulas.
        """
        ...

    def contribute(self, held: Held, brought: Any, came: Sequence[Share], compute: Compute) -> Any:
        """This worker's part of the global mean: the mean of all parts is sum x / sum w, with what is on its way.

        Args:
            held: Before a push.
            brought: What the trainer has brought to it, which counts like W'.
            came: What would have counted in the next round.
            compute: Applies formulas.
        """
        ...


def gathered(mean: Any) -> Held:
    """What is held after a global mean, which all trainers take."""
    return Held(mean, mean)


@dataclasses.dataclass(frozen=True)
class Dpsgd:
    """``x_i <- sum_j W_ij x_j + step`` (Lian et al., NeurIPS 2017, algorithm 1), equal weights W_ij.

    What is pushed are the models at which the steps begin: all of them are known before any step is.
    """

    early: ClassVar[bool] = True
    wide: ClassVar[bool] = False

    @property
    def lag(self) -> int:
        """What is pushed counts in its round."""
        return 0

    def push(self, held: Held, stepped: Any, parts: int, compute: Compute) -> tuple[Held, Share]:
        """See ``Mixing``."""
        del stepped, parts, compute
        return held, Share(held.model, 1)

    def mix(self, held: Held, stepped: Any, came: Sequence[Share], parts: int, compute: Compute) -> Held:
        """See ``Mixing``."""
        models = [share.model for share in came]
        if stepped is None:
            return held._replace(model=compute(mean, parts, held.model, *models)) if models else held
        if not models and held.taken is held.model:
            return Held(stepped, stepped)
        model = compute(mean_and_step, parts, stepped, held.taken, held.model, *models)
        return Held(model, model)

    def contribute(self, held: Held, brought: Any, came: Sequence[Share], compute: Compute) -> Any:
        """See ``Mixing``; what is on its way are copies of what all hold."""
        del came
        return brought if held.taken is held.model else compute(moved, brought, held.taken, held.model)


@dataclasses.dataclass(frozen=True)
class PushSum:
    """Equal shares of (x + step, w) go to the receivers and stay; z = x / w (Assran et al., ICML 2019, algorithm 1).

    With ``lag=1`` what is pushed in a round counts in the next: algorithm 2 for a delay of one round.
    """

    lag: int = 0
    early: ClassVar[bool] = False
    wide: ClassVar[bool] = True

    def push(self, held: Held, stepped: Any, parts: int, compute: Compute) -> tuple[Held, Share]:
        """See ``Mixing``."""
        if stepped is None:
            model = compute(share, parts, held.weight, held.model)
        elif held.taken is held.model:
            model = compute(share_of_step, parts, held.weight, stepped, held.model)
        else:
            model = compute(share_of_late_step, parts, held.weight, stepped, held.taken, held.model)
        kept = Share(model, held.weight / parts)
        return held._replace(kept=kept), kept

    def mix(self, held: Held, stepped: Any, came: Sequence[Share], parts: int, compute: Compute) -> Held:
        """See ``Mixing``."""
        del parts
        assert held.kept is not None, "the others are pushed first"
        shares = [held.kept, *came]
        weight = functools.reduce(operator.add, [each.weight for each in shares])
        model = compute(unbiased, weight, *(each.model for each in shares))
        return Held(model, held.taken if stepped is None else model, weight)

    def contribute(self, held: Held, brought: Any, came: Sequence[Share], compute: Compute) -> Any:
        """See ``Mixing``.

        What a worker holds and what is on its way to it have the same weights on all workers, since they all send and
        receive alike; so these add up to 1 on each.
        """
        models = [each.model for each in came]
        if held.taken is not held.model:
            return compute(biased_and_moved, held.weight, brought, held.taken, held.model, *models)
        if not models and held.weight == 1:
            return brought
        return compute(biased_and_stepped, held.weight, brought, held.model, *models)


# formulas: numbers first, then the elements of models


def mean(parts, own, *came):
    """The mean of all; in the order of the version inside of XLA."""
    return total(*came, own) / parts


def mean_and_step(parts, stepped, taken, own, *came):
    """The mean of all, and the step."""
    return mean(parts, own, *came) + (stepped - taken)


def moved(stepped, taken, own):
    """``own`` and the step; ``own`` itself where there is none."""
    return own + (stepped - taken)


def share(parts, weight, own):
    """A share of x = z w."""
    return own * weight / parts


def share_of_step(parts, weight, stepped, own):
    """A share of x + step = z w + (W' - z): exactly one of W' where w is 1."""
    return (stepped + own * (weight - 1)) / parts


def share_of_late_step(parts, weight, stepped, taken, own):
    """The same where other workers' models were mixed since the trainer took its own."""
    return (own * weight + (stepped - taken)) / parts


def unbiased(weight, *shares):
    """The model z = x / w, of all shares of x."""
    return total(*shares) / weight


def biased_and_stepped(weight, stepped, own, *came):
    """The sum of x, the step and what is on its way."""
    return total(stepped + own * (weight - 1), *came)


def biased_and_moved(weight, stepped, taken, own, *came):
    """The same where other workers' models were mixed since the trainer took its own."""
    return total(own * weight + (stepped - taken), *came)


SHARES = (share, share_of_step, share_of_late_step)
"""The formulas that give shares, which are as wide as sums are."""


def total(*summands):
    """The sum, one after the other."""
    return functools.reduce(operator.add, summands)
