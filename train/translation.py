"""Trains a Transformer to translate: ``python -m train.translation --algorithm wagma --workers 4``."""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.transformer import BOS, PAD, TRANSFORMERS, Transformer, TransformerConfig
from train import console, parsing, recipe, resume, run, settings, translating
from train.data.text import Pairs, buckets, catalog, digest, measures, tokens, vocabulary
from train.data.text.feed import PairFeed, batch_shape
from train.data.text.order import BucketOrder
from train.data.text.translator import Search, Translator
from train.gradients import cross_entropy, mean_loss_and_gradients
from train.networks import Network, network
from train.pytrees import as_shapes
from train.task import Defaults, Gradients, Mean, Model, Place, Score
from train.translation_options import Options
from train.translation_presets import PRESETS


def create_network(options: Options, words: vocabulary.Vocabulary) -> tuple[TransformerConfig, Network]:
    """The model that the options ask for; nothing is compiled."""
    config = dataclasses.replace(
        TRANSFORMERS[options.model],
        vocab_size=words.size,
        norm=options.norm,
        dropout=options.dropout,
        dtype=jnp.dtype(options.precision),
    )
    return config, network(lambda rngs: Transformer(config, rngs=rngs))


class Translation(Defaults):
    """Translation of sentences; see ``train.task.Task``.

    Args:
        options: Checked ones.

    Raises:
        ValueError: Something is wrong with the text, or an extra is missing.
    """

    unit = "tokens"
    score = Score("BLEU")

    def __init__(self, options: Options):
        measures.check()
        self.options = options
        given = (options.source, options.target, options.test_source, options.test_target)
        corpus = catalog.load(options.dataset, *given)
        self.vocabulary = _vocabulary(options, corpus.train)
        limits = options.max_tokens, options.max_ratio
        self.train, train_text, train_counts = tokens.encoded(corpus.train, self.vocabulary, *limits)
        # all of it, whatever models learn from: BLEU of different vocabularies and limits can be compared
        self.test_text, test_counts = tokens.translatable(corpus.test, self.vocabulary, translating.LONGEST)
        found = {"training": (train_text, train_counts), "test": (self.test_text, test_counts)}
        self.counts = {name: corpus.counts[name] + counts for name, (_, counts) in found.items()}
        for name, (pairs, _) in found.items():
            if not pairs.source:
                raise ValueError(
                    f"no {name} pairs are left of {corpus.name}, {self.counts[name].describe()}: raise --max-tokens or "
                    "--max-ratio"
                )
        if options.sampling == "shard" and len(train_text.source) < options.workers:
            raise ValueError(
                f"--sampling shard needs a training pair for each of {options.workers} workers, got "
                f"{len(train_text.source)}: take --sampling whole, or fewer --workers"
            )
        self._compared = Pairs(*(side[: measures.MOST_COMPARED] for side in train_text))  # the others need no memory
        lengths = self.train.lengths
        least = options.workers if options.sampling == "shard" else 1
        self.shapes = buckets.choose(lengths, options.buckets, options.batch_size, options.accumulate, least)
        bucket = buckets.assign(lengths, self.shapes)
        self.members = [np.flatnonzero(bucket == number) for number in range(len(self.shapes))]
        rows = np.array([shape.rows for shape in self.shapes])
        batches = np.array([len(pairs) for pairs in self.members]) / rows
        self.units_per_step, self.units_per_epoch = round(lengths.sum() / batches.sum()), int(lengths.sum())
        # independent of shapes, so that --accumulate does not change it
        self.target_per_step = options.batch_size * float(lengths[:, 1].sum() / lengths.sum())
        self.padding = buckets.padding(lengths, self.shapes)
        self.config, self.network = create_network(options, self.vocabulary)
        self.name = f"{corpus.name}, {options.model}"
        self.like = self.network.like
        self.batch_shapes = [batch_shape(shape) for shape in self.shapes]
        self.fingerprint = {
            "training pairs": len(self.train),
            "test pairs": len(self.test_text.source),
            "vocabulary": self.vocabulary.digest,
            "text": digest(train_text, self.test_text),
        }
        search = Search(options.beam, options.length_penalty)
        self._translator = Translator(self.network.for_evaluation, self.vocabulary, search)
        self._baselines: dict[str, float] | None = None
        for line in self.describe():
            console.say(line)

    def describe(self) -> list[str]:
        """What was read and what batches are made of it, for people."""
        lines = [f"{name} set: {counts.describe()}" for name, counts in self.counts.items()]
        shapes = ", ".join(f"{shape.rows}x({shape.source}+{shape.target})" for shape in self.shapes)
        lines.append(f"{self.vocabulary.size:,} tokens in the vocabulary; batches of {shapes}")
        lines.append(f"{self.padding:.1%} of all positions are padding")
        return lines

    def init(self, seed: int) -> Model:
        """Parameters from a seed."""
        return self.network.init(seed)

    def gradients(self, model: Model, carry: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Gradients:
        """Gradients of the cross-entropy; batch: source int32 [rows, source], target int32 [rows, target].

        The sum over all tokens is divided by a constant, the target's share of --batch-size. So a plain mean over
        workers and over steps gives every token the same weight.
        """
        parts = self.options.accumulate
        share = self.target_per_step / parts

        def loss_function(params, key, batch):
            key, mine = jax.random.split(key)
            module: Any = self.network.for_training(params, model["stats"])
            target = batch["target"]
            begun = jnp.concatenate([jnp.full_like(target[:, :1], BOS), target[:, :-1]], axis=1)
            logits = module(batch["source"], begun, mine if self.options.dropout else None)
            losses = cross_entropy(logits, target, self.options.label_smoothing)
            total, count = jnp.sum(losses, where=target != PAD), jnp.sum(target != PAD)
            positions = batch["source"].size + target.size
            padding = positions - count - jnp.sum(batch["source"] != PAD)
            sums = {"loss": (total, count), "padding": (padding, jnp.asarray(positions))}
            return total / share, (key, jax.tree.map(lambda x: x.astype(jnp.float32), sums))

        _, _, sums, grads = mean_loss_and_gradients(loss_function, model["params"], key, dict(batch), parts)
        means = {name: Mean(total * parts, count * parts) for name, (total, count) in sums.items()}
        return Gradients(grads, model["stats"], carry, means)

    def feed(self, place: Place, seed: int, first_unit: int) -> PairFeed:
        """The batches of this process's workers."""
        options = self.options
        order = BucketOrder(
            self.members,
            [shape.rows for shape in self.shapes],
            options.workers,
            seed,
            options.sampling,
            place.equal_shapes,
            first_unit / int(self.train.lengths.sum()),
        )
        return PairFeed(self.train, self.shapes, order, place)

    def evaluate(self, model: Model, place: Place) -> list[str]:
        """Translates this process's part of the test set."""
        which, parts = place.part
        return self._translator(model, self.test_text.source[which::parts], place.devices[0])

    def scores(self, parts: Sequence[list[str]]) -> dict[str, float]:
        """BLEU and chrF on the whole test set, beside the BLEU of two translators that do not learn."""
        made, references = self.translations(parts), self.test_text.target
        if self._baselines is None:
            self._baselines = measures.baselines(self._compared, self.test_text)
        return {"BLEU": measures.bleu(made, references), "chrF": measures.chrf(made, references), **self._baselines}

    def translations(self, parts: Sequence[list[str]]) -> list[str]:
        """The translations of the test set in its order."""
        made = [""] * len(self.test_text.source)
        for which, part in enumerate(parts):
            made[which :: len(parts)] = part
        return made

    def export(self) -> dict[str, Any]:
        """What a reader of the exported model needs to know."""
        config = dataclasses.asdict(self.config)
        return {
            "model": self.options.model,
            "config": {name: value for name, value in config.items() if not name.endswith("dtype")},
            "vocabulary": f"{vocabulary.FILE}, a model of sentencepiece; sources and targets end with its token 2",
        }

    def files(self) -> dict[str, bytes]:
        """The vocabulary, which belongs to the model."""
        return {vocabulary.FILE: self.vocabulary.model}

    def finish(self, out: Path, notes: Mapping[str, Any], parts: Sequence[list[str]]) -> dict[str, Any]:
        """Writes the translations of the test set and the pictures of lengths and step times."""
        made = self.translations(parts)
        blocks = zip(*self.test_text, made, strict=True)
        text = "".join(f"source       {s}\nreference    {t}\ntranslation  {m}\n\n" for s, t, m in blocks)
        (out / "translations.txt").write_text(text, "utf-8")
        if self.options.picture:
            from train import translation_pictures  # matplotlib takes long to import

            translation_pictures.plot_lengths(out / "lengths.png", self.train.lengths, self.shapes)
            translation_pictures.plot_step_times(out / "step-times.png", out)
        console.say(f"signature of BLEU: {measures.signature()}")
        return {
            "signature": measures.signature(),
            "pairs": {name: {"read": c.read, "left_out": dict(c.left_out)} for name, c in self.counts.items()},
            "padding": self.padding,
            "batch_shapes": [dataclasses.asdict(shape) for shape in self.shapes],
        }


def _vocabulary(options: Options, pairs: Pairs) -> vocabulary.Vocabulary:
    """That of the run which goes on or is evaluated, the one given, or a new one."""
    earlier = options.resume or options.evaluate
    if earlier is not None:
        return vocabulary.find(earlier)
    if options.vocabulary is not None:
        return vocabulary.load(options.vocabulary)
    return vocabulary.train(pairs.source, pairs.target, options.vocabulary_size)


def translate(options: Options) -> None:
    """Translates what ``--translate`` names, a line to standard output for each of its lines.

    Raises:
        ValueError: The text cannot be read, or there is no such model.
    """
    assert options.translate is not None, "the options have been checked"
    assert options.exported is not None, "the options have been checked"
    sentences = translating.read(options.translate, sys.stdin.buffer)
    trained = parsing.options_of(Options, options.exported)
    words = vocabulary.find(options.exported)
    _, net = create_network(trained, words)
    model = resume.load_consensus(options.exported, as_shapes(net.like))
    translator = Translator(net.for_evaluation, words, Search(options.beam, options.length_penalty))
    for line in translating.translated(translator, model, sentences, trained.max_tokens):
        print(line)


WORKLOAD = run.Workload("translation", Options, Translation, recipe.create_optimizer, PRESETS)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not any(word.partition("=")[0] in ("--translate", "--exported") for word in arguments):
        run.main(WORKLOAD, arguments)
        return
    try:
        options = run.parse(WORKLOAD, arguments)
        run.check(options)
        settings.check_platforms(needs_cpu=False)
        translate(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        sys.exit(f"train.translation: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
