"""Tests of the ResNets: published sizes, normalization, initialization, and training mapped over workers."""

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from models.resnet import RESNETS, ResidualBlock, ResNet, ResNetConfig, batch_norm

TINY = RESNETS["resnet_tiny"]


def abstract(config, **options):
    """A model of shapes and dtypes, nothing allocated."""
    return nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0), **options))


@cache
def _drawn():
    return nnx.split(nnx.jit(lambda: ResNet(TINY, rngs=nnx.Rngs(0)))())


def concrete():
    """A tiny model of the caller's own, with parameters that are drawn once: that takes its time."""
    return nnx.merge(*_drawn(), copy=True)


@nnx.jit
def call(model, images):
    return model(images)


def count(model, kind):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, kind)))


def output_of(model, function, *images_shape):
    """Shapes and dtypes of `function(model, images)`, nothing computed."""
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct(images_shape, jnp.float32)

    def run(state, images):
        return function(nnx.merge(graph, state, copy=True), images)

    return jax.eval_shape(run, state, images)


def feature_maps(model, images):
    """Every stage's result; by hand, so that the test sees what the logits hide."""
    x = nnx.relu(model.stem(images))
    maps = [x]
    if model.config.stem == "imagenet":
        padding: Any = ((1, 1), (1, 1))
        maps.append(nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding))
    for stage in model.stages:
        maps.append(stage(maps[-1]))
    return maps


def stem_mean(model):
    return nnx.to_pure_dict(nnx.state(model.stem.norm))["mean"]


def some_images(*shape):
    return jnp.asarray(np.random.default_rng(7).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    # The first two are torchvision's. By hand for tiny: 9*16 + 32 in the stem; 2*(9*16*16 + 32) in the first
    # block; 9*16*32 + 64, 9*32*32 + 64 and 16*32 + 64 in the second; 32*10 + 10 in the head.
    [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("resnet_small", 77_754), ("resnet_tiny", 19_706)],
)
def test_number_of_parameters(name, expected):
    assert count(abstract(RESNETS[name]), nnx.Param) == expected


@pytest.mark.parametrize(
    ("name", "image_size", "sizes", "channels"),
    [
        ("resnet18", 224, [112, 56, 56, 28, 14, 7], [64, 64, 64, 128, 256, 512]),
        ("resnet50", 224, [112, 56, 56, 28, 14, 7], [64, 64, 256, 512, 1024, 2048]),
        ("resnet_small", 28, [28, 28, 14, 7], [16, 16, 32, 64]),
        ("resnet_tiny", 8, [8, 8, 4], [16, 16, 32]),
    ],
)
def test_feature_maps_and_logits(name, image_size, sizes, channels):
    config = RESNETS[name]
    images_shape = (2, image_size, image_size, config.in_channels)
    maps = output_of(abstract(config), feature_maps, *images_shape)
    assert [x.shape for x in maps] == [(2, size, size, c) for size, c in zip(sizes, channels, strict=True)]
    logits = output_of(abstract(config), lambda model, images: model(images), *images_shape)
    assert (logits.shape, logits.dtype) == ((2, config.num_classes), jnp.float32)


def test_strides_of_stages():
    model = abstract(replace(TINY, stage_sizes=(1, 2, 1), strides=(2, 1, 3)))
    assert [x.shape[1] for x in output_of(model, feature_maps, 1, 12, 12, 1)] == [12, 6, 6, 2]


def test_bottleneck_strides_in_its_3x3_convolution():
    block = abstract(RESNETS["resnet50"]).stages[1].layers[0]
    convolutions = [(layer.conv.kernel_size, layer.conv.strides) for layer in block.layers]
    assert convolutions == [((1, 1), 1), ((3, 3), 2), ((1, 1), 1)]


def test_logits_are_those_of_the_last_feature_map():
    model = concrete()
    images = some_images(4, 8, 8, 1)
    features = np.asarray(nnx.jit(feature_maps)(model, images)[-1])
    head = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model.head)))
    expected = features.mean((1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(call(model, images), expected, rtol=1e-5, atol=1e-6)


def test_batch_statistics_move_in_train_mode_only():
    model = concrete()
    images = 3.0 + some_images(4, 8, 8, 1)
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))

    model.eval()
    # One example's logits depend on the others' no more.
    others = images * (np.arange(4) == 0)[:, None, None, None]
    np.testing.assert_allclose(call(model, images)[0], call(model, others)[0], rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.BatchStat), before)

    model.train()
    call(model, images)
    # Momentum 0.9, from a mean of zero.
    batch_mean = np.asarray(model.stem.conv(images)).mean((0, 1, 2))
    np.testing.assert_allclose(stem_mean(model), 0.1 * batch_mean, rtol=1e-4, atol=1e-6)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), nnx.state(model, nnx.BatchStat), before)
    assert all(jax.tree.leaves(moved))


def test_view_switches_batch_statistics_without_touching_the_model():
    model = concrete()
    call(nnx.view(model, use_running_average=True), some_images(4, 8, 8, 1))
    assert not stem_mean(model).any()


def test_bfloat16_computes_in_bfloat16_between_float32_ends():
    images = some_images(4, 8, 8, 1)
    model = nnx.merge(nnx.graphdef(abstract(replace(TINY, dtype=jnp.bfloat16))), nnx.state(concrete()))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    assert {x.dtype for x in output_of(model, feature_maps, 4, 8, 8, 1)} == {jnp.dtype("bfloat16")}
    logits = call(model, images)
    assert logits.dtype == jnp.float32
    # Same parameters; bfloat16 has 8 bits of precision and errors add up over three layers.
    np.testing.assert_allclose(logits, call(concrete(), images), atol=0.05)


def test_param_dtype_is_that_of_every_parameter():
    params = nnx.state(abstract(replace(TINY, param_dtype=jnp.bfloat16)), nnx.Param)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_group_norm_in_place_of_batch_norm():
    graph = nnx.graphdef(abstract(TINY, norm=partial(nnx.GroupNorm, num_groups=4)))
    # The parameters are those that BatchNorm has; there is nothing else.
    model = nnx.merge(graph, nnx.state(concrete(), nnx.Param))
    # One example's logits do not depend on the others', and the modes of BatchNorm change nothing.
    images = some_images(4, 8, 8, 1)
    others = images * (np.arange(4) == 0)[:, None, None, None]
    expected = call(model, images)[0]
    for mode in (model.train, model.eval):
        mode()
        np.testing.assert_allclose(call(model, others)[0], expected, rtol=1e-5, atol=1e-6)
    nnx.view(model, use_running_average=True, raise_if_not_found=False)


@pytest.mark.parametrize(
    "norm",
    [partial(batch_norm, use_scale=False), lambda num_features, **_: lambda x: x],
    ids=["without_scale", "no_norm_at_all"],
)
def test_norms_without_a_scale(norm):
    logits = output_of(abstract(TINY, norm=norm), lambda model, images: model(images), 2, 8, 8, 1)
    assert logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("bottleneck", "norm"),
    [(False, batch_norm), (True, partial(nnx.GroupNorm, num_groups=4))],
    ids=["basic_batch_norm", "bottleneck_group_norm"],
)
def test_block_starts_as_the_identity(bottleneck, norm):
    in_features, features = (32, 8) if bottleneck else (8, 8)
    x = some_images(2, 5, 5, in_features)

    @nnx.jit
    def result():
        options = {"norm": norm, "dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        block = ResidualBlock(in_features, features, 1, bottleneck=bottleneck, **options)
        assert block.shortcut is None
        return block(x)

    np.testing.assert_array_equal(result(), np.maximum(x, 0))


def test_kernels_start_with_he_variance():
    kernel = concrete().stages[1].layers[0].layers[1].conv.kernel[...]
    assert kernel.shape == (3, 3, 32, 32)
    fan_out = 3 * 3 * 32
    # The variance of n draws has a relative standard deviation of sqrt(2 / n), 1.5 % here; five of them.
    assert math.isclose(float(kernel.var()), 2 / fan_out, rel_tol=0.075)


@jax.jit
def train_step(params, stats, images, labels):
    """One worker's step of gradient descent: pure, and without a word about workers."""
    graph, _ = _drawn()

    def loss_of(params):
        model = nnx.merge(graph, params, stats, copy=True)
        loss = optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()
        return loss, nnx.state(model, nnx.BatchStat)

    (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), stats, loss


def shard_map_one(function):
    """Maps over devices that hold one worker each."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def on_device(*args):
        return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], args)))

    by_worker = PartitionSpec("data")
    return jax.shard_map(on_device, mesh=mesh, in_specs=by_worker, out_specs=by_worker)


@pytest.mark.parametrize(
    ("transform", "count_workers"),
    [(jax.vmap, lambda: 2), (shard_map_one, jax.device_count)],
    ids=["vmap", "shard_map"],
)
def test_workers_train_as_each_would_alone(transform, count_workers):
    workers = count_workers()
    _, params, stats = nnx.split(concrete(), nnx.Param, nnx.BatchStat)
    images = some_images(workers, 4, 8, 8, 1)
    labels = np.arange(workers * 4).reshape(workers, 4) % 10

    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * workers), (params, stats))
    actual = jax.jit(transform(train_step))(*stacked, images, labels)

    for worker in range(workers):
        batch = images[worker], labels[worker]
        alone = train_step(params, stats, *batch)
        mine = jax.tree.map(lambda leaf, worker=worker: np.asarray(leaf)[worker], actual)
        # vmap makes grouped convolutions, which sum in another order.
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), mine, alone)
        assert train_step(*alone[:2], *batch)[2] < alone[2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stage_sizes", ()),
        ("stage_sizes", [1, 1]),
        ("stage_sizes", (1, 0)),
        ("strides", (1,)),
        ("strides", (1, 0)),
        ("block", "wide"),
        ("stem", "large"),
        ("width", 0),
        ("num_classes", 10.0),
        ("in_channels", -1),
        ("dtype", jnp.int32),
        ("param_dtype", "float33"),
    ],
)
def test_config_errors_say_what_came_and_what_to_do(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must .*got .*; pass ") as error:
        replace(TINY, **{field: value})
    assert repr(value) in str(error.value)


def test_config_is_hashable_and_frozen():
    assert {ResNetConfig((1, 1)): 1}[ResNetConfig((1, 1))] == 1


@pytest.mark.parametrize("shape", [(8, 8, 1), (2, 8, 8), (2, 8, 8, 3)])
def test_wrong_images_raise_when_traced(shape):
    with pytest.raises(ValueError, match=r"height, width, 1\], got \[.*images\[\.\.\., None\].*in_channels"):
        output_of(abstract(TINY), lambda model, images: model(images), *shape)
