"""``GroupExchange`` across processes beside raw MPI: what a round costs, and whom stragglers cost how much.

Start it on several ranks, with nothing else running:

    wagma launch -n 4 --no-prefix -- python -m benchmarks.exchange SECTION

``python -m benchmarks.exchange SECTION --help`` lists the options of a section.

What is compared runs in the same processes and takes turns, in an order that changes from repetition to repetition, so
that a machine whose speed drifts affects all alike. All ranks pass a barrier before every repetition, and the time of
the slowest rank counts. A warm-up, in which everything is compiled and allocated, does not count. Rank 0 prints
Markdown tables, and writes every sample to ``exchange-SECTION-RANKS.json`` and a picture to ``.png`` beside it.
"a (b - c; d)" is the median, the quartiles, and the 95th percentile.

Sections:

- ``sizes``: one round with nobody late, for each model size: a raw ``MPI_Allreduce`` on the same group, the wire alone,
  and all of ``average()``.
- ``straggler``: one worker is late by seconds: asleep, in one long computation, or in a Python loop. How long do the
  others wait in ordinary rounds?
- ``rotating``: another worker is late at every step. Steps per second beside those of Allreduce-SGD, and beside the
  bound that the sync period sets.
- ``slow``: one worker is always slower. Steps per second with both clocks, and how fast the others are between syncs.
- ``idle``: what the background thread costs in CPU time, latency and memory.
- ``local``: what local SGD costs between its global means.
"""
