"""Lab records: the options of whole experiments, by name.

imagenet-resnet50
    What:      ResNet-50 on ImageNet-1k, 90 epochs, as in section 5 of Li et al., TPDS 32(7), 2021: 128 images per
               worker, groups of the square root of P workers, a global mean every 10 rounds.
    Command:   python -m train.images --preset imagenet-resnet50 --dataset imagefolder:DIR   (on every host)
               DIR/train and DIR/val hold one folder per class, as the usual preparation of ILSVRC2012 leaves them; or
               --dataset 'tfrecord:DIR/*' --num-classes 1000.
    Workers:   64, one accelerator each; --workers N for another number. 8,192 images a step, 156 steps an epoch.
    Recipe:    that of Goyal et al. 2017 (arXiv:1706.02677): rate 0.1 per 256 images of a step, linear warm-up over 5
               epochs, a tenth of it after epochs 30, 60 and 80, Nesterov momentum 0.9, weight decay 1e-4 on kernels;
               label smoothing 0.1; bfloat16 activations and convolutions.
    Expected:  the recipe with an allreduce gives about 76 % top-1 (Goyal et al., 76.3 % with 8,192 images a step,
               without label smoothing); the paper reports WAGMA-SGD close to Allreduce-SGD. Neither has been
               measured with this code: it has been run on folders of a few thousand small images only.
    Memory:    per worker parameters and momentum (0.1 GB each in float32), and by an estimate some 10 GB of
               activations in bfloat16; --accumulate 4 takes a quarter of the latter.
    Network:   about 0.2 GB sent per worker and step (GroupSchedule.describe() has the exact figures).
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "imagenet-resnet50": {
        # the run
        "algorithm": "wagma",
        "workers": 64,
        "group_size": None,  # the square root of P
        "sync_period": 10,
        "epochs": 90,
        "batch_size": 128,
        "sampling": "whole",
        "log_every": 50,
        "eval_every": 1564,  # ten epochs of 1,281,167 images with 64 workers
        "checkpoint_every": 782,
        "loader_threads": 16,
        # the data
        "dataset": "imagefolder:imagenet",
        "image_size": 224,
        "channels": 3,
        "augment": "crop-flip",
        # the model and the recipe
        "model": "resnet50",
        "precision": "bfloat16",
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "scale_learning_rate": True,
        "warmup": 5 / 90,
        "schedule": "step",
        "step_boundaries": (30 / 90, 60 / 90, 80 / 90),
        "step_factor": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 1e-4,
        "label_smoothing": 0.1,
    },
}
