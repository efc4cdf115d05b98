"""The options of translation."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from models.transformer import TRANSFORMERS
from train import recipe
from train.fields import flag, option
from train.gradients import GradientOptions
from train.options import RunOptions
from train.translation_presets import PRESETS

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(sorted(PRESETS))]


@dataclasses.dataclass(frozen=True)
class Options(RunOptions, recipe.RecipeOptions, GradientOptions):
    """Train a Transformer to translate with several workers, or translate text with a trained one.

    Attributes:
        preset: Take the defaults of all options from a lab record (train/translation_presets.py).
        dataset: sample (English-German, comes with the project) or libreoffice-help[:DIR] (python -m train.fetch makes
            it); --source and --target replace it.
        source: Sentences to train on, one a line, plain or packed as .gz or .xz.
        target: Their translations, line by line.
        test_source: Sentences to evaluate on; None: 5 % of the training pairs, at most 1,000, are kept for that.
        test_target: Their translations.
        max_tokens: Pairs with more tokens in source or target are left out, and counted.
        max_ratio: Pairs of which one side has more times the tokens of the other are left out, and counted.
        vocabulary: A vocabulary that a run has saved, or one of sentencepiece; None: made from the training text.
        vocabulary_size: Tokens of the vocabulary that is made, at most; source and target share it.
        buckets: Shapes of batches, at most; each is compiled before the run is timed.
        model: Which Transformer.
        norm: Where its normalization is: after each residual sum (post) or before each sublayer (pre).
        dropout: Share of features that training sets to zero; for the big model the paper has 0.3.
        beam: Hypotheses that are kept when sentences are translated; 1 is greedy search.
        length_penalty: Exponent of the length penalty of the beam search.
        steps: Rounds to train for; 4,000 if neither this nor --epochs is given.
        batch_size: Tokens and padding of source and target per worker and step, at most.
        translate: Translate the lines of this file with the model of --exported, and nothing more; - reads them from
            standard input. Translations go to standard output.
        exported: A run, one of its checkpoints, or an exported model; for --translate.
    """

    preset: PresetName | None = option(None, resume="free")
    # the same data may lie elsewhere when a run goes on
    dataset: str = option("sample", same=lambda name: name.partition(":")[0])
    source: Path | None = option(None, same=lambda path: path is None)
    target: Path | None = option(None, same=lambda path: path is None)
    test_source: Path | None = option(None, same=lambda path: path is None)
    test_target: Path | None = option(None, same=lambda path: path is None)
    max_tokens: int = 48
    max_ratio: float = 4.0
    vocabulary: Path | None = option(None, same=lambda path: path is None)
    vocabulary_size: int = 4000
    buckets: int = option(10, resume="restarts")
    model: Literal[tuple(TRANSFORMERS)] = "tiny"  # pyrefly: ignore[invalid-literal]
    norm: Literal["post", "pre"] = "pre"
    dropout: float = 0.1
    beam: int = option(4, resume="free")
    length_penalty: float = option(0.6, resume="free")
    workers: int = option(4, resume="restarts")
    steps: int | None = option(4000, resume="free")
    batch_size: int = option(512, resume="restarts")
    label_smoothing: float = 0.1
    optimizer: recipe.OptimizerName = "adam"
    learning_rate: float = 3e-3
    schedule: recipe.ScheduleName = "inverse-sqrt"
    beta2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.0
    log_every: int = option(50, resume="free")
    eval_every: int = option(1000, resume="free")
    translate: Path | None = option(None, resume="free")
    exported: Path | None = option(None, resume="free")

    def check(self) -> None:
        """Raises ValueError for numbers out of range."""
        super().check()
        for name in ("max_tokens", "buckets", "beam", "vocabulary_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag(name)} must be at least 1, got {getattr(self, name)}")
        if not self.max_ratio >= 1:
            raise ValueError(f"--max-ratio must be at least 1, got {self.max_ratio}: the default is 4")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be in [0, 1), got {self.dropout}: 0 sets no features to zero")
        if not 0 <= self.length_penalty < math.inf:
            raise ValueError(f"--length-penalty must not be negative, got {self.length_penalty}: the default is 0.6")
        if (self.translate is None) != (self.exported is None):
            raise ValueError("--translate and --exported go together: give a text, and a run or an exported model")
