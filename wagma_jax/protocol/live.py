"""The live model of a worker that averages in pairs: who may change it, and how, so that no step is lost.

The trainer adds its steps to it, and the engine averages it with those of others, at any time in between. What was
handed out or sent is remembered, and what comes back counts as a difference to that. So the mean of all live models,
with what is on its way, changes by the steps alone, whatever the delays (Lian et al., ICML 2018, arXiv:1710.06952:
algorithm 1 in the form of its equation x_{k+1} = x_k W_k - rate * g(x_{k - tau}), W_k doubly stochastic).

Models are opaque here, arrays in a run and symbols in a model checker, and never changed in place: a snapshot is the
model itself. The engine and the trainer swap whole records, under a lock that lives elsewhere, so that none is torn.
"""

from typing import Any, NamedTuple, Protocol


class Arithmetic(Protocol):
    """What is computed with models. Whatever is equal stays so exactly: where nobody interferes nothing drifts."""

    def moved(self, own: Any, live: Any, base: Any) -> Any:
        """``own + (live - base)``; where ``live`` is ``base``, ``own`` itself."""
        ...

    def mean(self, live: Any, received: Any) -> Any:
        """``(live + received) / 2``."""
        ...

    def merged(self, received: Any, live: Any, sent: Any) -> Any:
        """``(sent + received) / 2 + (live - sent)``; where ``live`` is ``sent``, the bits of the partner's ``mean``."""
        ...


class Live(NamedTuple):
    """The live model of one worker, and what it is compared with.

    Attributes:
        model: The live model x.
        taken: What the trainer was given last, at which it computes its next step.
        sent: What an active worker has sent to its partner, whose answer has not come; None otherwise.
        version: How often ``model`` was changed: which state of it a step, a swap or an answer belongs to.
        taken_version: The version that ``taken`` was.
        sent_version: The version that ``sent`` was.
    """

    model: Any
    taken: Any
    sent: Any = None
    version: int = 0
    taken_version: int = 0
    sent_version: int = 0

    def step(self, own: Any, compute: Arithmetic) -> "Live":
        """The trainer hands in W', and takes the live model with its step: ``x <- x + (W' - taken)``."""
        model = compute.moved(own, self.model, self.taken)
        return self._replace(model=model, taken=model, version=self.version + 1, taken_version=self.version + 1)

    def skip(self) -> "Live":
        """The trainer takes the live model, without a step."""
        return self._replace(taken=self.model, taken_version=self.version)

    def ask(self) -> "Live":
        """An active worker sends ``model`` to its partner."""
        assert self.sent is None, "one swap at a time"
        return self._replace(sent=self.model, sent_version=self.version)

    def merge(self, received: Any, compute: Arithmetic) -> "Live":
        """The answer has come: ``x <- x + (received - sent) / 2``."""
        assert self.sent is not None, "nothing was asked"
        model = compute.merged(received, self.model, self.sent)
        return self._replace(model=model, sent=None, version=self.version + 1)

    def answer(self, received: Any, compute: Arithmetic) -> "Live":
        """A passive worker has its partner's model, and sends back its own as it was: ``x <- (x + received) / 2``."""
        return self._replace(model=compute.mean(self.model, received), version=self.version + 1)

    def gather(self, mean: Any) -> "Live":
        """All workers stand still, and take the global mean."""
        assert self.sent is None, "a swap is in progress"
        version = self.version + 1
        return Live(mean, mean, version=version, taken_version=version)
