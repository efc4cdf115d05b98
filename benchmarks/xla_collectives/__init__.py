"""Group averaging inside XLA beside a global ``pmean``: time per step on this machine, and bytes counted at any scale.

*Time.* ``GroupAverager.average`` runs as a jitted, donated step: for 8 workers on a mesh of 8 virtual CPU devices (with
``check_vma`` on and off), and for 8 workers simulated by ``vmap`` on one device. There are no gradients and no sync
rounds; the round advances, so that all rotating groups take part. All candidates of a model size are measured in one
run. Every pass takes one sample of each, in an order that is shuffled anew, so that a machine whose speed drifts
affects all alike. A sample is three steps, one rotation of the groups. Ratios are taken within a pass and summarized
afterwards. The baseline is ``pmean`` on the tree, as one would write it by hand; "consensus" is the same mean from
wagma_jax, which joins small leaves.

On Linux most of a step on a large model is page faults of fresh memory, unless glibc is told to keep what it has:
``MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=1073741824``. Results name the
``MALLOC_*`` and ``XLA_*`` variables that were set.

*Bytes and messages.* They are counted in lowered programs, for which no device is needed: see ``stablehlo``.

Run ``python -m benchmarks.xla_collectives``, and nothing else at the same time; ``--help`` lists the options.
"""
