"""Scores of translations by sacrebleu, and what a program reaches that does not learn."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from train.data.text import Pairs, similarity

MOST_COMPARED = 200_000  # training pairs among which the nearest is looked for


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus (Papineni et al. 2002), as sacrebleu computes it (Post 2018, arXiv:1804.08771), in [0, 100]."""
    return float(_sacrebleu().BLEU().corpus_score(list(translations), [list(references)]).score)


def chrf(translations: Sequence[str], references: Sequence[str]) -> float:
    """The chrF2 of a corpus (Popović 2015), in [0, 100]."""
    return float(_sacrebleu().CHRF().corpus_score(list(translations), [list(references)]).score)


def signature() -> str:
    """How BLEU is computed, for papers."""
    metric = _sacrebleu().BLEU()
    metric.corpus_score(["a"], [["a"]])  # which tells it the number of references
    return str(metric.get_signature())


def baselines(train: Pairs, test: Pairs) -> dict[str, float]:
    """BLEU of two translators that do not learn.

    Returns:
        ``copy_BLEU``: the source is its own translation. ``nearest_BLEU``: the translation of the most similar
        source (``train.data.text.similarity``) of the first 200,000 training pairs.
    """
    which, _ = similarity.nearest(test.source, train.source[:MOST_COMPARED])
    return {
        "copy_BLEU": bleu(test.source, test.target),
        "nearest_BLEU": bleu([train.target[index] for index in which], test.target),
    }


def check() -> None:
    """Raises ValueError, which names the extra, if sacrebleu is missing."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise ValueError(
            "translation needs sacrebleu, which the extra 'translation' brings: run make setup in the project, or "
            "pip install 'wagma_jax[train,translation]'"
        )


def _sacrebleu() -> Any:
    check()
    from sacrebleu import metrics

    return metrics
