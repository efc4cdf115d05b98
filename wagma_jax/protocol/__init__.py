"""Which worker takes part in which exchange, and when: pure state machines, (state, event) -> (state, actions).

Every worker has a *trainer*, which computes and arrives at rounds, and an *engine*, which runs a machine, sends its
messages and performs its exchanges. Nothing in this package knows MPI, threads, clocks or arrays:

- ``messages``: what engines tell each other, what happens to them, and what they are to do;
- ``machine``: what an engine knows of its machine;
- ``tree``: whom a worker speaks to where all are concerned; ``facts``: who has said what about which round;
- ``lifecycle``: rest, waking, failure and the end, the same for every machine;
- ``plan``: which sum a round is, for one worker;
- ``rounds``: the machine of rounds in which sums are taken by a plan;
- ``rules``: what is published and what is merged, as records of opaque buffers;
- ``increments``: what is contributed and taken where workers exchange increments;
- ``gossip``: the machine of rounds in which workers push to some and mix with others;
- ``mixing``: what is pushed and how it is mixed, as formulas and records of opaque models;
- ``pairwise``: the machine of pairs, in which workers average by two and nobody waits;
- ``live``: what becomes of their models.
"""
