"""Trains a ResNet on images: ``python -m train.images --algorithm wagma --workers 8``."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.resnet import RESNETS, ResNet, ResNetConfig
from train import console, recipe, run
from train.data import feeds, loading
from train.data.images import Augmentation, Dataset, catalog, unreadable
from train.data.order import Order
from train.evaluation import Evaluation
from train.fields import option
from train.gradients import GradientOptions, cross_entropy, mean_loss_and_gradients
from train.networks import Network, network, statistics
from train.options import RunOptions
from train.presets import PRESETS
from train.task import Defaults, Gradients, Mean, Model, Place, Score

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(sorted(PRESETS))]

WARNINGS = 3  # unreadable examples that are named when they are found; the list of all comes in the end
ROWS_PER_DEVICE = 250  # of an evaluation


@dataclasses.dataclass(frozen=True)
class Options(RunOptions, recipe.RecipeOptions, GradientOptions, loading.LoadingOptions):
    """Train a ResNet on images with several workers, in one program or in one process each.

    Attributes:
        preset: Take the defaults of all options from a lab record (train/presets.py).
        dataset: digits (8x8, inside of scikit-learn); fashion-mnist[:DIR] (python -m train.fetch gets it);
            imagefolder:DIR with DIR/train/CLASS/* and DIR/val/CLASS/*; or tfrecord:GLOB.
        model: Which ResNet.
        image_size: Height and width to which images from files are cropped.
        channels: Of images from files: 3 (RGB) or 1 (grey).
        num_classes: Of a large tfrecord data set, which does not tell it.
        augment: What happens to training images: nothing, random flips, or random crops and flips (resized crops of
            files, shifts of images in memory); None: crop-flip for files, nothing in memory.
        scale_learning_rate: Multiply the learning rate by workers * batch size / 256.
    """

    preset: PresetName | None = option(None, resume="free")
    # the same data may lie elsewhere when a run goes on
    dataset: str = option("digits", same=lambda name: name.partition(":")[0])
    model: Literal["resnet_tiny", "resnet_small", "resnet18", "resnet50"] = "resnet_tiny"
    image_size: int = 224
    channels: int = 3
    num_classes: int | None = None
    augment: Augmentation | None = None
    scale_learning_rate: bool = False

    def check(self) -> None:
        """Raises ValueError for numbers out of range."""
        super().check()
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"--batch-size {self.batch_size} cannot be split into --accumulate {self.accumulate} equal parts: use "
                "a multiple of that"
            )


def create_network(model_name: str, precision: str, data: Dataset) -> tuple[ResNetConfig, Network]:
    """The model that fits the data; nothing is compiled.

    Raises:
        ValueError: The model does not take such images.
    """
    height, width, channels = data.image_shape
    config = dataclasses.replace(
        RESNETS[model_name], num_classes=len(data.classes), in_channels=channels, dtype=jnp.dtype(precision)
    )
    found = network(lambda rngs: ResNet(config, rngs=rngs))
    images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    try:
        jax.eval_shape(lambda model, images: found.for_evaluation(model)(images), found.like, images)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--model {model_name} does not take the images of {data.name}, {height}x{width} with {channels} "
            f"channels: {error}"
        ) from None
    return config, found


class Findings(NamedTuple):
    """What a part of an evaluation has found.

    Attributes:
        sums: Over its examples, by name; ``count`` is how many.
        unreadable: Indices of test examples that could not be read.
    """

    sums: dict[str, float]
    unreadable: frozenset[int]


class Images(Defaults):
    """Image classification; see ``train.task.Task``.

    Args:
        options: Checked ones.

    Raises:
        ValueError: Something is wrong with the data, or the model does not fit it.
    """

    unit = "images"
    score = Score("accuracy", "%")

    def __init__(self, options: Options):
        self.options = options
        self.data = catalog.load(
            options.dataset,
            augment=options.augment,
            image_size=options.image_size,
            channels=options.channels,
            num_classes=options.num_classes,
        )
        examples = len(self.data.train)
        if options.evaluate is None and options.workers * options.batch_size > examples:
            raise ValueError(
                f"--workers {options.workers} times --batch-size {options.batch_size} is more than the {examples} "
                f"training examples of {options.dataset}: lower one of them"
            )
        self.config, self.network = create_network(options.model, options.precision, self.data)
        self.name = f"{options.dataset}, {options.model}"
        self.like = self.network.like
        self.units_per_step, self.units_per_epoch = options.batch_size, examples
        self.fingerprint = {"training examples": examples, "classes": self.data.classes}
        shape = (options.batch_size, *self.data.image_shape)
        image, label = jax.ShapeDtypeStruct(shape, np.uint8), jax.ShapeDtypeStruct(shape[:1], np.int32)
        self.batch_shapes = [{"image": image, "label": label}]
        self._sums = Evaluation(self.evaluation_step)
        self._lost: frozenset[int] = frozenset()  # test examples that were found to be unreadable

    def init(self, seed: int) -> Model:
        """Parameters and statistics from a seed."""
        return self.network.init(seed)

    def gradients(self, model: Model, carry: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Gradients:
        """Gradients of the mean cross-entropy; batch: image uint8 [batch, h, w, channels], label int32 [batch]."""
        del key  # nothing is drawn

        def loss_function(params, stats, batch):
            module = self.network.for_training(params, stats)
            logits = module(self.normalize(batch["image"]))
            loss = cross_entropy(logits, batch["label"], self.options.label_smoothing).mean()
            accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
            return loss, (statistics(module), {"accuracy": accuracy})

        loss, stats, metrics, grads = mean_loss_and_gradients(
            loss_function, model["params"], model["stats"], dict(batch), self.options.accumulate
        )
        one = jnp.ones((), jnp.float32)
        means = {name: Mean(value.astype(jnp.float32), one) for name, value in {"loss": loss, **metrics}.items()}
        return Gradients(grads, stats, carry, means)

    def normalize(self, images: jax.Array) -> jax.Array:
        """Maps uint8 images to float32 with about zero mean and unit variance."""
        return (images.astype(jnp.float32) - self.data.mean) / self.data.std

    def feed(self, place: Place, seed: int, first_unit: int) -> feeds.LoadedFeed:
        """The batches of this process's workers, loaded ahead."""
        data, options, named = self.data, self.options, set()
        order = Order(len(data.train), options.workers, options.batch_size, seed, options.sampling, first_unit)

        def prepare(batch):
            lost = unreadable.indices(batch)
            for index in lost - named:
                named.add(index)
                if len(named) <= WARNINGS:
                    console.warn(f"unreadable: {data.train.describe(index)}")
            return inputs(batch), {"unreadable": lost}

        return feeds.LoadedFeed(data.train, order, place, options, prepare, data.chunk)

    def evaluate(self, model: Model, place: Place) -> Findings:
        """Sums over this process's part of the test set, on all its devices at once."""
        data, lost = self.data, set()

        def batches():
            for batch, inside in feeds.evaluation_part(data.test, place, self.options, ROWS_PER_DEVICE, data.chunk):
                lost.update(unreadable.indices(batch))
                yield inputs(batch), inside & (batch["unreadable"] < 0)

        return Findings(self._sums(model, place, batches()), frozenset(lost))

    def evaluation_step(self, model: Model, batch: Mapping[str, jax.Array], counts: jax.Array) -> dict[str, jax.Array]:
        """Sums over the examples that count (bool [batch]); traced."""
        logits = self.network.for_evaluation(model)(self.normalize(batch["image"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
        among = best == batch["label"][:, None]
        return {
            "accuracy": jnp.sum(among[:, 0] & counts),
            "top5_accuracy": jnp.sum(among.any(-1) & counts),
            "loss": jnp.sum(losses, where=counts),
            "count": jnp.sum(counts),
        }

    def scores(self, parts: Sequence[Findings]) -> dict[str, float]:
        """Loss and accuracy on the whole test set.

        Raises:
            ValueError: No example could be read.
        """
        sums = {name: sum(part.sums[name] for part in parts) for name in parts[0].sums}
        count = sums.pop("count")
        lost = frozenset[int]().union(*(part.unreadable for part in parts))
        if lost - self._lost:
            self._lost |= lost
            console.warn(f"{len(lost)} test examples could not be read, and do not count")
        if count == 0:
            raise ValueError(f"none of the {len(self.data.test)} test examples can be read: check the data set")
        if len(self.data.classes) <= 10:
            del sums["top5_accuracy"]  # five guesses of ten say little
        return {name: value / count for name, value in sums.items()}

    def export(self) -> dict[str, Any]:
        """What a reader of the exported model needs to know."""
        config = dataclasses.asdict(self.config)
        return {
            "model": self.options.model,
            "config": {name: value for name, value in config.items() if not name.endswith("dtype")},
            "classes": self.data.classes,
            "input": {
                "shape": self.data.image_shape,
                "range": "uint8; the model takes (image - mean) / std",
                "mean": self.data.mean.tolist(),
                "std": self.data.std.tolist(),
            },
        }

    def finish(self, out: Path, notes: Mapping[str, Iterable[int]], parts: Sequence[Findings]) -> dict[str, Any]:
        """Lists the files that could not be read, if there are any."""
        train = frozenset(notes.get("unreadable", ()))
        test = frozenset[int]().union(*(part.unreadable for part in parts))
        unreadable.write_list(out / "unreadable.txt", self.data, train, test)
        return {
            "test_examples": len(self.data.test) - len(test),
            "unreadable": {"train": len(train), "test": len(test)},
        }


def inputs(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a step takes of a batch."""
    return {"image": batch["image"], "label": batch["label"]}


def optimizer(options: Options) -> optax.GradientTransformationExtraArgs:
    """The local optimizer of a worker."""
    rate = options.learning_rate * (options.workers * options.batch_size / 256 if options.scale_learning_rate else 1)
    return recipe.create_optimizer(dataclasses.replace(options, learning_rate=rate))


WORKLOAD = run.Workload("images", Options, Images, optimizer, PRESETS)

if __name__ == "__main__":
    run.main(WORKLOAD)
