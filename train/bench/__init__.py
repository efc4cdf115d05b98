"""Compares algorithms: the same work, data order, delays and number of examples, in real processes, and one table.

``python -m train.bench PLAN.toml``. A *plan* (``plan``) names workloads, arms (an algorithm with its settings),
scenarios (who is late, or how slow the network is) and seeds. Each combination is a *case* (``cases``), which is run as
a user would run it (``running``, ``network``), at the learning rate that suits its arm (``tuning``). What is measured
(``measures``) is set against what the delays allow (``virtual``, ``bounds``), and becomes a table (``report``) and
pictures (``drawing``). ``estimate`` says beforehand how long all this takes.

It knows workloads as tasks, and algorithms by the table of ``wagma_jax.algorithms`` alone.
"""
