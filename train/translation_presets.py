"""Lab records of translation: the options of whole experiments, by name.

wmt14-en-de-base
    What:      the base Transformer on WMT14 English-German, as in section 5.2 of Li et al., TPDS 32(7), 2021: 8,192
               tokens per worker and step, groups of the square root of P workers, a global mean every 10 rounds. (The
               paper takes WMT17, and its length of training is not in tokens; the recipe here is that of Vaswani et al.
               2017, arXiv:1706.03762.)
    Command:   python -m train.translation --preset wmt14-en-de-base --source train.en.gz --target train.de.gz
               --test-source newstest2014.en --test-target newstest2014.de   (on every host)
               train.* are the 4.5 million pairs of Europarl, Common Crawl and News Commentary, line by line.
    Workers:   16, one accelerator each; --workers N for another number.
    Recipe:    post-norm, dropout 0.1, label smoothing 0.1; Adam with beta2 0.98 and epsilon 1e-9, 4 % linear warm-up to
               7e-4, then the inverse square root; 37,000 joint subwords; beam 4, length penalty 0.6.
    Expected:  Vaswani et al. report 27.3 BLEU with 100,000 steps of 25,000 source and 25,000 target tokens, averaged
               over checkpoints and by another BLEU than sacrebleu's. Nothing of this has been measured with this code:
               it has been run on the sample that comes with it.
    Memory:    per worker 0.25 GB of parameters and 0.5 GB of Adam's moments in float32; logits of 8,192 tokens take 0.6
               GB. --accumulate 4 takes a quarter of the activations. On the host, 4.5 million pairs take about 1.1 GB
               as tokens for each process, and some 4 GB more while they are read.
    Network:   about 0.25 GB sent per worker and step (GroupSchedule.describe() has the exact figures).
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "wmt14-en-de-base": {
        # the run
        "algorithm": "wagma",
        "workers": 16,
        "group_size": None,  # the square root of P
        "sync_period": 10,
        "steps": 100_000,
        "batch_size": 8192,
        "sampling": "whole",
        "log_every": 100,
        "eval_every": 5000,
        "checkpoint_every": 2500,
        # the data
        "max_tokens": 128,
        "max_ratio": 3.0,
        "vocabulary_size": 37_000,
        "buckets": 16,
        # the model and the recipe
        "model": "base",
        "norm": "post",
        "dropout": 0.1,
        "precision": "bfloat16",
        "optimizer": "adam",
        "learning_rate": 7e-4,
        "warmup": 0.04,
        "schedule": "inverse-sqrt",
        "beta2": 0.98,
        "epsilon": 1e-9,
        "label_smoothing": 0.1,
        "beam": 4,
        "length_penalty": 0.6,
    },
}
