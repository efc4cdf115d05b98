"""Residual networks for images, from the ImageNet classics down to one that trains on 8x8 digits in seconds.

The architecture is that of He et al., "Deep Residual Learning for Image Recognition", 2015
(https://arxiv.org/abs/1512.03385). As is usual since Goyal et al., "Accurate, Large Minibatch SGD", 2017
(https://arxiv.org/abs/1706.02677), a bottleneck block has its stride in the 3x3 convolution ("v1.5"), and the
last normalization of every block starts with a scale of zero, so that blocks start as identities.

The normalization is passed in: whoever builds the model decides which examples a normalization looks at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.checks import check_choice, check_count, check_floating

NormFactory = Callable[..., Callable[[jax.Array], jax.Array]]
"""Called as `norm(num_features, param_dtype=..., rngs=...)`; see `ResNet`."""

batch_norm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)
"""The default normalization: batch statistics of the examples in one call, nothing more."""

# For layers that a ReLU follows, from He et al., "Delving Deep into Rectifiers", 2015 (arXiv:1502.01852).
_he_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

_BOTTLENECK_EXPANSION = 4


def _check_positive_ints(name: str, value: Any) -> None:
    valid = isinstance(value, tuple) and value and all(isinstance(n, int) and n >= 1 for n in value)
    if not valid:
        raise ValueError(
            f"{name} must be a tuple of integers of at least 1, one a stage, got {value!r}; pass e.g. (1, 2)"
        )


@dataclass(frozen=True)
class ResNetConfig:
    """Shape and precision of a ResNet; hashable, and varied with `dataclasses.replace`.

    Attributes:
        stage_sizes: number of residual blocks in each stage.
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, and a 1x1 to four times the width).
        width: channels of the first stage's 3x3 convolutions; every further stage doubles them.
        num_classes: number of logits.
        in_channels: channels of the input images.
        stem: "imagenet" (7x7 convolution with stride 2, then 3x3 max pooling with stride 2) or "small"
            (one 3x3 convolution with stride 1), which keeps the resolution of small images.
        strides: stride of each stage's first block. None: 1 for the first stage, 2 for the others.
        dtype: floating type of activations and convolutions; pooling and the last layer are float32 always.
        param_dtype: floating type of the parameters.

    Raises:
        ValueError: if a field is out of its range, or `strides` and `stage_sizes` differ in length.
    """

    stage_sizes: tuple[int, ...]
    block: Literal["basic", "bottleneck"] = "basic"
    width: int = 64
    num_classes: int = 1000
    in_channels: int = 3
    stem: Literal["imagenet", "small"] = "imagenet"
    strides: tuple[int, ...] | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        """Validates every field."""
        _check_positive_ints("stage_sizes", self.stage_sizes)
        if self.strides is not None:
            _check_positive_ints("strides", self.strides)
            if len(self.strides) != len(self.stage_sizes):
                raise ValueError(
                    f"strides must have one entry per stage, {len(self.stage_sizes)} for stage_sizes="
                    f"{self.stage_sizes}, got {self.strides}; pass None for a stride of 2 in every stage "
                    "after the first"
                )
        check_choice("block", self.block, ("basic", "bottleneck"))
        check_choice("stem", self.stem, ("imagenet", "small"))
        for name in ("width", "num_classes", "in_channels"):
            check_count(name, getattr(self, name))
        for name in ("dtype", "param_dtype"):
            check_floating(name, getattr(self, name))


RESNETS: dict[str, ResNetConfig] = {
    "resnet18": ResNetConfig((2, 2, 2, 2)),
    "resnet50": ResNetConfig((3, 4, 6, 3), block="bottleneck"),
    # 28x28 grey images such as Fashion-MNIST: feature maps of 28, 14 and 7 pixels, widths 16, 32 and 64.
    "resnet_small": ResNetConfig((1, 1, 1), width=16, num_classes=10, in_channels=1, stem="small"),
    # 8x8 grey images such as scikit-learn's digits, and tests: feature maps of 8 and 4, widths 16 and 32.
    "resnet_tiny": ResNetConfig((1, 1), width=16, num_classes=10, in_channels=1, stem="small"),
}
"""Configurations by name; `dataclasses.replace` makes others of them."""


class ResNet(nnx.Module):
    """A ResNet that maps images `[batch, height, width, channels]` to logits `[batch, num_classes]`.

    >>> model = ResNet(RESNETS["resnet_tiny"], rngs=nnx.Rngs(0))
    >>> model.eval()  # BatchNorm: use the running statistics; model.train() goes back to the batch's own
    >>> model(jnp.zeros([4, 8, 8, 1])).shape
    (4, 10)

    `norm` makes every normalization. Called as `norm(num_features, param_dtype=..., rngs=...)`, it returns a
    module (or function) from `[..., num_features]` to the same shape. flax's normalizations fit as they are,
    their options bound with `functools.partial`:

        ResNet(config, norm=partial(nnx.BatchNorm, momentum=0.99), rngs=rngs)
        ResNet(config, norm=partial(nnx.GroupNorm, num_groups=8), rngs=rngs)

    No `dtype` is passed: a norm computes in a precision of its own (flax: float32 if parameters are), and
    its result is cast to `config.dtype`. If norms have a `scale`, the last one in every block starts at zero;
    without it, they are left alone and blocks do not start as identities.

    `model.train()` and `model.eval()` work with every norm. `nnx.view(model, use_running_average=...)` raises
    if no layer has that switch, as with GroupNorm; with `raise_if_not_found=False` it works there, too.

    Attributes:
        config: the configuration.
        stem: the first convolution, without the pooling.
        stages: the residual blocks, one `nnx.Sequential` per stage.
        head: the linear layer to the logits.
    """

    def __init__(self, config: ResNetConfig, *, norm: NormFactory = batch_norm, rngs: nnx.Rngs):
        """Makes a model with freshly drawn parameters.

        Args:
            config: shape and precision, for example `RESNETS["resnet18"]`.
            norm: what makes the normalizations, see above.
            rngs: its `params` stream draws the parameters.
        """
        self.config = config
        options: dict[str, Any] = {
            "norm": norm,
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
            "rngs": rngs,
        }
        kernel_size, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        self.stem = ConvNorm(config.in_channels, config.width, kernel_size, stride, **options)

        features = config.width
        stages = []
        strides = config.strides or (1,) + (2,) * (len(config.stage_sizes) - 1)
        for stage, (num_blocks, stride) in enumerate(zip(config.stage_sizes, strides, strict=True)):
            blocks = []
            for index in range(num_blocks):
                block = ResidualBlock(
                    features,
                    config.width * 2**stage,
                    stride if index == 0 else 1,
                    bottleneck=config.block == "bottleneck",
                    **options,
                )
                features = block.out_features
                blocks.append(block)
            stages.append(nnx.Sequential(*blocks))
        self.stages = nnx.List(stages)

        self.head = nnx.Linear(
            features, config.num_classes, dtype=jnp.float32, param_dtype=config.param_dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Classifies images.

        Args:
            images: `[batch, height, width, in_channels]`, of any real dtype; cast to `config.dtype`.

        Returns:
            float32 logits `[batch, num_classes]`.

        Raises:
            ValueError: if the images have another rank or number of channels; under jit, when traced.
        """
        channels = self.config.in_channels
        if images.ndim != 4 or images.shape[-1] != channels:
            raise ValueError(
                f"images must have shape [batch, height, width, {channels}], got {list(images.shape)}; add "
                "a missing axis with images[..., None] or images[None], or set in_channels in the config"
            )
        x = nnx.relu(self.stem(images))
        if self.config.stem == "imagenet":
            padding: Any = ((1, 1), (1, 1))  # flax takes pairs, and annotates a string
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        for stage in self.stages:
            x = stage(x)
        return self.head(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


class ResidualBlock(nnx.Module):
    """`relu(shortcut(x) + layers(x))`: the identity at initialization where x >= 0 and the shape is kept.

    Attributes:
        out_features: channels of the result.
        layers: two 3x3 convolutions, or 1x1, 3x3 and 1x1; the first 3x3 has the stride.
        shortcut: a 1x1 convolution with that stride where the shape changes, None (the identity) elsewhere.
    """

    def __init__(self, in_features: int, features: int, stride: int, *, bottleneck: bool, **options: Any):
        """Makes a block from `in_features` to `features` channels, or four times as many for a bottleneck.

        Args:
            in_features: channels of the input.
            features: channels of the 3x3 convolutions.
            stride: by how much height and width shrink.
            bottleneck: whether to wrap one 3x3 convolution in 1x1 convolutions, in place of two 3x3.
            **options: `norm`, `dtype`, `param_dtype` and `rngs` of `ConvNorm`.
        """
        conv = partial(ConvNorm, **options)
        if bottleneck:
            self.out_features = features * _BOTTLENECK_EXPANSION
            layers = [
                conv(in_features, features, 1),
                conv(features, features, 3, stride),
                conv(features, self.out_features, 1),
            ]
        else:
            self.out_features = features
            layers = [conv(in_features, features, 3, stride), conv(features, features, 3)]
        layers[-1].zero_scale()
        self.layers = nnx.List(layers)
        keeps_shape = stride == 1 and in_features == self.out_features
        self.shortcut = nnx.data(None if keeps_shape else conv(in_features, self.out_features, 1, stride))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, in_features]` to `[batch, height / stride, ..., out_features]`."""
        y = x
        for layer in self.layers[:-1]:
            y = nnx.relu(layer(y))
        y = self.layers[-1](y)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ConvNorm(nnx.Module):
    """A convolution without bias, normalized.

    Attributes:
        conv: the convolution.
        norm: the normalization, as `norm` made it.
        dtype: floating type of the result.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel_size: int,
        stride: int = 1,
        *,
        norm: NormFactory,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Makes a square convolution from `in_features` to `features` channels, and its normalization."""
        self.conv = nnx.Conv(
            in_features,
            features,
            (kernel_size, kernel_size),
            strides=stride,
            # Symmetric, unlike "SAME" with a stride: as in the published models.
            padding=kernel_size // 2,
            use_bias=False,
            kernel_init=_he_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = norm(features, param_dtype=param_dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, in_features]` to `[batch, height / stride, ..., features]`."""
        return self.norm(self.conv(x)).astype(self.dtype)

    def zero_scale(self) -> None:
        """Sets the normalization's scale to zero, if it has one."""
        scale = getattr(self.norm, "scale", None)
        if isinstance(scale, nnx.Variable):
            scale[...] = jnp.zeros_like(scale[...])
