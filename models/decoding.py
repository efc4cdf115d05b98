"""Greedy and beam search: the likeliest targets of a batch of sources, by a model that decodes step by step.

Both are compiled once for each configuration of the model, shape of the sources, size of the beam and `max_length`.
Every hypothesis ends with `EOS`: at the last position no other token is allowed.

Hypotheses are compared by `log probability / lp(length)`, with the length penalty of Wu et al., "Google's Neural
Machine Translation System", 2016, equation 14 (https://arxiv.org/abs/1609.08144):
`lp(length) = ((5 + length) / 6)^penalty`, where `EOS` counts.
"""

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from models.checks import check_count
from models.transformer import BOS, EOS, PAD

_NEVER = -jnp.inf


class Decodable(Protocol):
    """What a search needs of an `nnx.Module`; see `models.transformer.Transformer`."""

    def start(self, source: jax.Array, beams: int, length: int) -> Any:
        """A state before the first step, for sources `[batch, source]`."""
        ...

    def decode_step(self, state: Any, tokens: jax.Array, ancestors: jax.Array) -> tuple[jax.Array, Any]:
        """Logits `[batch, beams, vocab_size]` of the tokens after `[batch, beams]`, and the next state.

        Ancestors are int32 `[batch, beams, length]`: the places in the beam where a hypothesis had its tokens.
        """
        ...


class Hypotheses(NamedTuple):
    """Targets and how likely they are.

    Attributes:
        tokens: int32 `[batch, max_length]` or `[batch, beam_size, max_length]`: without `BOS`; `EOS`, then `PAD`.
        scores: float32 `[batch]` or `[batch, beam_size]`: log probability in nats over the length penalty.
    """

    tokens: jax.Array
    scores: jax.Array


def greedy(model: Decodable, source: jax.Array, *, max_length: int, length_penalty: float = 0.0) -> Hypotheses:
    """The targets that take the likeliest token at every step.

    Args:
        model: a `Transformer`.
        source: integers `[batch, source]`, padded with `PAD`. A row of padding only takes no step: its target is
            padding, with score 0.
        max_length: tokens of a target at most, with `EOS`.
        length_penalty: exponent of the length penalty in the scores; targets do not depend on it.

    Returns:
        Tokens `[batch, max_length]` and scores `[batch]`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    _check(max_length, length_penalty)
    graph, state = nnx.split(model)
    return _greedy(graph, state, source, length_penalty, max_length=max_length)


def beam(
    model: Decodable, source: jax.Array, *, beam_size: int, max_length: int, length_penalty: float = 0.6
) -> Hypotheses:
    """The best targets that a beam search finds.

    At each step, the `beam_size` likeliest continuations of all hypotheses of a sentence are looked at. Those that end
    are kept aside, whatever comes later; as many others as the beam is wide go on. A sentence is done when `beam_size`
    hypotheses have ended, and the best of the others, if it ended now for nothing, would not be among the `beam_size`
    best. (Without a length penalty it never will be; with one, it might at a later step.) With a beam of 1 that is
    greedy search.

    Args:
        model: a `Transformer`.
        source: integers `[batch, source]`, padded with `PAD`. A row of padding only takes no step: its best target is
            padding, with score 0.
        beam_size: hypotheses for each sentence.
        max_length: tokens of a target at most, with `EOS`.
        length_penalty: exponent of the length penalty; 0 compares log probabilities, more prefers longer targets.

    Returns:
        Tokens `[batch, beam_size, max_length]` and scores `[batch, beam_size]`, the best first. Where fewer hypotheses
        exist, tokens are `PAD`, and scores are minus infinity.

    Raises:
        ValueError: if an argument is out of its range.
    """
    check_count("beam_size", beam_size)
    _check(max_length, length_penalty)
    graph, state = nnx.split(model)
    return _beam(graph, state, source, length_penalty, beam_size=beam_size, max_length=max_length)


def penalty_of(length: Any, exponent: Any) -> jax.Array:
    """The length penalty of Wu et al., 2016, for lengths that count `EOS`."""
    return ((5.0 + length) / 6.0) ** exponent


@partial(jax.jit, static_argnums=0, static_argnames="max_length")
def _greedy(graph, model_state, source, length_penalty, *, max_length: int) -> Hypotheses:
    model = nnx.merge(graph, model_state)
    ancestors = jnp.zeros((len(source), 1, max_length), jnp.int32)

    def step(carry):
        position, state, done, last, tokens, total = carry
        logits, state = model.decode_step(state, last, ancestors)
        scores = _log_probabilities(logits, position + 1 == max_length)[:, 0]
        score, best = jax.lax.top_k(scores, 1)  # twice as fast as argmax on CPUs
        tokens = tokens.at[:, position].set(jnp.where(done, PAD, best[:, 0]))
        return position + 1, state, done | (best[:, 0] == EOS), best, tokens, total + jnp.where(done, 0, score[:, 0])

    empty = _is_empty(source)
    carry = (
        jnp.zeros((), jnp.int32),
        model.start(source, 1, max_length),
        empty,
        jnp.full((len(source), 1), BOS, jnp.int32),
        jnp.full((len(source), max_length), PAD, jnp.int32),
        jnp.zeros(len(source), jnp.float32),
    )
    _, _, _, _, tokens, total = jax.lax.while_loop(lambda carry: ~carry[2].all(), step, carry)
    return Hypotheses(tokens, total / penalty_of(jnp.sum(tokens != PAD, axis=-1), length_penalty))


class _Search(NamedTuple):
    """Where a beam search stands.

    Attributes:
        position: int32 [], of the tokens to be found next.
        state: the model's.
        done: bool [batch].
        last: int32 [batch, beams], the last tokens of the hypotheses that go on.
        tokens: int32 [batch, beams, length], all of their tokens.
        ancestors: int32 [batch, beams, length], the places in the beam where they were found.
        totals: float32 [batch, beams], log probabilities; minus infinity where there is no hypothesis.
        num_ended: int32 [batch], hypotheses that have ended.
        ended: the best of them.
    """

    position: jax.Array
    state: Any
    done: jax.Array
    last: jax.Array
    tokens: jax.Array
    ancestors: jax.Array
    totals: jax.Array
    num_ended: jax.Array
    ended: Hypotheses


@partial(jax.jit, static_argnums=0, static_argnames=("beam_size", "max_length"))
def _beam(graph, model_state, source, length_penalty, *, beam_size: int, max_length: int) -> Hypotheses:
    model = nnx.merge(graph, model_state)

    def step(search: _Search) -> _Search:
        position = search.position
        logits, state = model.decode_step(search.state, search.last, search.ancestors)
        scores = _log_probabilities(logits, position + 1 == max_length)
        totals, parents, found = _best(search.totals[..., None] + scores, 2 * beam_size)
        tokens = _rows(search.tokens, parents).at[:, :, position].set(found)

        # Only what ends among the first beam_size candidates has ended: with a beam of 1, what greedy search ends.
        ends = found == EOS
        among = slice(None, beam_size)
        complete = ends[:, among] & jnp.isfinite(totals[:, among]) & ~search.done[:, None]
        finals = jnp.where(complete, totals[:, among] / penalty_of(position + 1, length_penalty), _NEVER)
        ended = _best_of(search.ended, Hypotheses(tokens[:, among], finals))
        num_ended = search.num_ended + jnp.sum(complete, axis=-1)

        # Each hypothesis has one end, so beam_size of twice as many candidates go on.
        totals, chosen = jax.lax.top_k(jnp.where(ends, _NEVER, totals), beam_size)
        hopeless = totals[:, 0] / penalty_of(position + 1, length_penalty) <= ended.scores[:, -1]
        ancestors = _rows(search.ancestors, jnp.take_along_axis(parents, chosen, axis=1))
        return _Search(
            position=position + 1,
            state=state,
            done=search.done | (hopeless & (num_ended >= beam_size)) | (position + 1 == max_length),
            last=jnp.take_along_axis(found, chosen, axis=1),
            tokens=_rows(tokens, chosen),
            ancestors=ancestors.at[:, :, position + 1].set(places, mode="drop"),
            totals=totals,
            num_ended=num_ended,
            ended=ended,
        )

    batch, places = len(source), jnp.arange(beam_size, dtype=jnp.int32)
    empty = _is_empty(source)
    nothing = jnp.full((batch, beam_size, max_length), PAD, jnp.int32)
    only_first = jnp.where(places == 0, 0.0, _NEVER)
    start = _Search(
        position=jnp.zeros((), jnp.int32),
        state=model.start(source, beam_size, max_length),
        done=empty,
        last=jnp.full((batch, beam_size), BOS, jnp.int32),
        tokens=nothing,
        ancestors=jnp.zeros_like(nothing).at[:, :, 0].set(places),
        totals=jnp.broadcast_to(only_first, (batch, beam_size)),
        num_ended=jnp.zeros(batch, jnp.int32),
        ended=Hypotheses(nothing, jnp.where(empty[:, None], only_first, _NEVER)),
    )
    return jax.lax.while_loop(lambda search: ~search.done.all(), step, start).ended


def _log_probabilities(logits: jax.Array, is_last: jax.Array) -> jax.Array:
    """Of the tokens that may come next, and minus infinity for others; `[..., vocab_size]`."""
    token = jnp.arange(logits.shape[-1])
    allowed = (token != PAD) & (token != BOS) & ((token == EOS) | ~is_last)
    return jnp.where(allowed, jax.nn.log_softmax(logits), _NEVER)


def _best(totals: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The highest of `[batch, beams, vocab_size]`: totals, places in the beam and tokens, `[batch, count]` each."""
    vocab_size = totals.shape[-1]
    # The barrier keeps XLA from narrowing this for later uses of a part, which then would sort the whole vocabulary.
    best, index = jax.lax.optimization_barrier(jax.lax.top_k(totals.reshape(len(totals), -1), count))
    return best, index // vocab_size, index % vocab_size


def _best_of(some: Hypotheses, others: Hypotheses) -> Hypotheses:
    """As many as the first ones, the best of both."""
    scores, chosen = jax.lax.top_k(jnp.concatenate([some.scores, others.scores], axis=1), some.scores.shape[1])
    tokens = _rows(jnp.concatenate([some.tokens, others.tokens], axis=1), chosen)
    return Hypotheses(jnp.where(jnp.isfinite(scores)[..., None], tokens, PAD), scores)


def _rows(array: jax.Array, chosen: jax.Array) -> jax.Array:
    """`array[b, chosen[b, i]]` of `[batch, rows, ...]`."""
    return jnp.take_along_axis(array, chosen[..., None], axis=1)


def _is_empty(source: jax.Array) -> jax.Array:
    return (source == PAD).all(axis=-1)


def _check(max_length: Any, length_penalty: Any) -> None:
    check_count("max_length", max_length)
    if isinstance(length_penalty, int | float) and length_penalty < 0:
        raise ValueError(f"length_penalty must be at least 0, got {length_penalty}; pass e.g. 0.6")
