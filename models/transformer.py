"""The encoder-decoder Transformer for translation, from the published sizes down to one that trains on a CPU.

The architecture is that of Vaswani et al., "Attention Is All You Need", 2017 (https://arxiv.org/abs/1706.03762), with
normalization after each residual sum ("post", as published) or before each sublayer ("pre", as in Xiong et al., "On
Layer Normalization in the Transformer Architecture", 2020, https://arxiv.org/abs/2002.04745). Dropout stands where the
paper has it: on the sums of embeddings and positions, and on the output of every sublayer.

One matrix embeds source and target, and is the last layer before the softmax (section 3.4 of the paper), so that both
languages share a vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.attention import Cache
from models.checks import check_choice, check_count, check_floating
from models.layers import DecoderLayer, Dropout, EncoderLayer, sinusoids

PAD, BOS, EOS = 0, 1, 2
"""Tokens: padding, which nothing attends to; the begin of a target; the end of a sentence."""


@dataclass(frozen=True)
class TransformerConfig:
    """Shape and precision of a Transformer; hashable, and varied with `dataclasses.replace`.

    Attributes:
        vocab_size: tokens of the vocabulary that source and target share, with `PAD`, `BOS` and `EOS`.
        d_model: features of embeddings and of every layer's result; even.
        num_heads: attention heads; they divide `d_model`.
        d_ff: features between the two layers of a feed-forward network.
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        dropout: share of features that training sets to zero.
        norm: "post" (each sum is normalized, as published) or "pre" (each sublayer's input is, and the last result).
        dtype: floating type of activations and matrix products; softmax, statistics of normalizations, and
            logits are float32.
        param_dtype: floating type of the parameters.

    Raises:
        ValueError: if a field is out of its range.
    """

    vocab_size: int
    d_model: int
    num_heads: int
    d_ff: int
    num_encoder_layers: int
    num_decoder_layers: int
    dropout: float = 0.1
    norm: Literal["post", "pre"] = "post"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        """Validates every field."""
        for name in ("vocab_size", "d_model", "num_heads", "d_ff", "num_encoder_layers", "num_decoder_layers"):
            check_count(name, getattr(self, name))
        if self.vocab_size <= EOS:
            raise ValueError(f"vocab_size must be at least {EOS + 1}, got {self.vocab_size}; count PAD, BOS and EOS in")
        if self.d_model % 2 or self.d_model % self.num_heads:
            raise ValueError(
                f"d_model must be even and a multiple of num_heads, got {self.d_model} and {self.num_heads} heads; "
                "pass e.g. 64 features for each head"
            )
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}; pass e.g. 0.1")
        check_choice("norm", self.norm, ("post", "pre"))
        for name in ("dtype", "param_dtype"):
            check_floating(name, getattr(self, name))


TRANSFORMERS: dict[str, TransformerConfig] = {
    # For CPUs: 0.9 and 5.5 million parameters beside the embedding.
    "tiny": TransformerConfig(8_000, 128, 4, 512, 2, 2),
    "small": TransformerConfig(8_000, 256, 4, 1_024, 3, 3),
    "base": TransformerConfig(41_000, 512, 8, 2_048, 6, 6),
    "big": TransformerConfig(36_000, 1_024, 16, 4_096, 6, 6, dropout=0.3),
}
"""Configurations by name; `dataclasses.replace` makes others of them, such as one for your vocabulary.

"base" and "big" are those of the paper's Table 3. They have 44.1 and 176.4 million parameters (matrices, biases and
normalizations) beside the embedding, which is counted once. The vocabularies are those with which all counts of
Table 3 come out as printed: 65 and 213 million in all. The paper's text says about 37,000 tokens, with which "base" has
63.1 million, and "big" 214.2 million.
"""


class Decoding(NamedTuple):
    """What decoding knows of a batch of sentences and of the tokens decoded so far.

    Attributes:
        position: int32 [], how many positions have been decoded.
        layers: a cache for each layer of the decoder.
        memory: keys and values of the source, for each layer of the decoder, `[batch, heads, source, features]`.
        memory_mask: bool `[batch, 1, 1, source]`, where the source has tokens.
    """

    position: jax.Array
    layers: tuple[Cache, ...]
    memory: tuple[tuple[jax.Array, jax.Array], ...]
    memory_mask: jax.Array


class Transformer(nnx.Module):
    """A Transformer that maps source and target tokens to logits of the next target tokens.

    >>> model = Transformer(TRANSFORMERS["tiny"], rngs=nnx.Rngs(0))
    >>> source = jnp.array([[5, 6, EOS, PAD], [7, 8, 9, EOS]])
    >>> target = jnp.array([[BOS, 5, PAD], [BOS, 6, 7]])  # the logits are those of [[5, EOS, -], [6, 7, EOS]]
    >>> model(source, target).shape
    (2, 3, 8000)

    Padding is on the right. No token attends to padding, so a sentence's logits depend neither on padding nor on the
    other sentences of the batch (but which features dropout sets to zero depends on the place in the batch). A token
    that is not in the vocabulary makes logits NaN.

    Attributes:
        config: the configuration.
        embedding: `[vocab_size, d_model]`, of source, target and softmax.
        encoder: the encoder's layers.
        decoder: the decoder's layers.
        encoder_norm: the last normalization of the encoder with `norm="pre"`, None otherwise.
        decoder_norm: that of the decoder.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        """Makes a model with freshly drawn parameters.

        Args:
            config: shape and precision, for example `TRANSFORMERS["small"]`.
            rngs: its `params` stream draws the parameters.
        """
        self.config = config
        draw = nnx.initializers.normal(config.d_model**-0.5)
        shape = (config.vocab_size, config.d_model)
        self.embedding = nnx.Param(draw(rngs.params(), shape, jnp.dtype(config.param_dtype)))
        precision: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype, "rngs": rngs}
        sizes = (config.d_model, config.num_heads, config.d_ff)
        pre = config.norm == "pre"
        self.encoder = nnx.List([EncoderLayer(*sizes, pre=pre, **precision) for _ in range(config.num_encoder_layers)])
        self.decoder = nnx.List([DecoderLayer(*sizes, pre=pre, **precision) for _ in range(config.num_decoder_layers)])
        self.encoder_norm = nnx.data(nnx.LayerNorm(config.d_model, **precision) if pre else None)
        self.decoder_norm = nnx.data(nnx.LayerNorm(config.d_model, **precision) if pre else None)

    def __call__(self, source: jax.Array, target: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Predicts each next token of the targets.

        Args:
            source: integers `[batch, source]`.
            target: integers `[batch, target]`, which begin with `BOS`.
            key: from which all dropout masks of this call are drawn; None: no dropout.

        Returns:
            float32 logits `[batch, target, vocab_size]`.

        Raises:
            ValueError: if the tokens are no integers of such shapes; under jit, when traced.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        return self.decode(target, self.encode(source, keys[0]), source, keys[1])

    def encode(self, source: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The memory `[batch, source, d_model]` of source tokens; see `__call__`."""
        _check_tokens("source", source)
        drop = Dropout(self.config.dropout, key)
        mask = _tokens_are(source)
        x = drop(self._embed(source, jnp.arange(source.shape[1])))
        for layer in self.encoder:
            x = layer(x, mask, drop)
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def decode(
        self, target: jax.Array, memory: jax.Array, source: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits of each next token of the targets, from the memory of their sources; see `__call__`."""
        _check_tokens("target", target)
        if len(target) != len(source):
            raise ValueError(
                f"source and target must have the same number of sentences, got {len(source)} and {len(target)}; "
                "pass them in pairs"
            )
        drop = Dropout(self.config.dropout, key)
        length = target.shape[1]
        mask = _tokens_are(target) & jnp.tril(jnp.ones((length, length), bool))
        x = drop(self._embed(target, jnp.arange(length)))
        for layer in self.decoder:
            x = layer(x, mask, layer.cross_attention.read(memory), _tokens_are(source), drop)
        return self._logits(x)

    def start(self, source: jax.Array, beams: int, length: int) -> Decoding:
        """Reads the source, for a decoding of at most `length` positions with several beams for each sentence."""
        config = self.config
        memory = self.encode(source)
        shape = (len(source), config.num_heads, length * beams, config.d_model // config.num_heads)
        empty = jnp.zeros(shape, config.dtype)
        return Decoding(
            position=jnp.zeros((), jnp.int32),
            layers=tuple(Cache(empty, empty) for _ in self.decoder),
            memory=tuple(layer.cross_attention.read(memory) for layer in self.decoder),
            memory_mask=_tokens_are(source),
        )

    def decode_step(
        self, state: Decoding, tokens: jax.Array, ancestors: jax.Array | None = None
    ) -> tuple[jax.Array, Decoding]:
        """Logits of the tokens after these.

        The cache is never rearranged when beams are: each one attends to the entries that its ancestors have written.

        Args:
            state: of `start`, or of the step before.
            tokens: integers `[batch, beams]`, those at this position; `BOS` at the first.
            ancestors: int32 `[batch, beams, length]`: in which place of the beam the hypothesis had its token at each
                position; its own at this one. Later ones do not matter. None: its own place all the time.

        Returns:
            float32 logits `[batch, beams, vocab_size]`, and the state for the next step.
        """
        beams = jnp.arange(tokens.shape[1])
        length = state.layers[0].keys.shape[2] // tokens.shape[1]
        if ancestors is None:
            ancestors = jnp.broadcast_to(beams[:, None], (*tokens.shape, length))
        past = jnp.arange(length) <= state.position
        mask = (ancestors[..., None] == beams) & past[:, None]  # [batch, beams, length, beams that wrote]
        mask = mask.reshape(*tokens.shape, -1)[:, None]
        x = self._embed(tokens, state.position[None])
        caches = []
        for layer, cache, memory in zip(self.decoder, state.layers, state.memory, strict=True):
            x, cache = layer.step(x, mask, memory, state.memory_mask, cache, state.position)
            caches.append(cache)
        return self._logits(x), state._replace(position=state.position + 1, layers=tuple(caches))

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """`[batch, length, d_model]` of tokens `[batch, length]` at positions `[length]`, or at one for all."""
        scale = math.sqrt(self.config.d_model)
        # gathered before they are converted: there are fewer of them than in the vocabulary
        x = jnp.take(self.embedding[...], tokens, axis=0).astype(jnp.float32) * scale
        return (x + sinusoids(positions, self.config.d_model)).astype(self.config.dtype)

    def _logits(self, x: jax.Array) -> jax.Array:
        """Float32 `[..., vocab_size]`."""
        x = x if self.decoder_norm is None else self.decoder_norm(x)
        matrix = self.embedding[...].astype(self.config.dtype)
        return jnp.einsum("...d,vd->...v", x, matrix, preferred_element_type=jnp.float32)


def _tokens_are(tokens: jax.Array) -> jax.Array:
    """Bool `[batch, 1, 1, length]`: where there is a token that may be attended to."""
    return (tokens != PAD)[:, None, None]


def _check_tokens(name: str, tokens: jax.Array) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers [batch, length], got {tokens.dtype} {list(tokens.shape)}; pass tokens, "
            "padded with PAD to one length"
        )
