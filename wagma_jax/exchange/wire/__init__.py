"""How buffers travel: sums of flat buffers over a group of MPI processes, in functions compiled for each group.

A buffer of m elements reaches the n members of a group in one of five ways (Thakur, Rabenseifner, Gropp, IJHPCA 2005):

- *recursive doubling*: log2(n) messages of m elements; for small buffers;
- *halving-doubling*: 2 log2(n) messages, 2 m (n - 1) / n elements in all; for medium ones;
- *pairwise*: as many elements in 2 (n - 1) messages; for n <= 16 that is not a power of two;
- *sent ahead*: for large buffers. A member posts all its sends before its compiled function runs, straight from the
  buffer, and nobody waits for anybody in between. MPI lets the receiver fetch a large message (on one machine from the
  sender's memory) while the sender computes or does not run at all. With one message at a time both would have to run
  at the same time for each message, and where ranks share cores that is left to chance. (Posting a send takes Python's
  GIL once a message; a trainer that loops in Python releases it after a while.) Two members send each other the whole
  buffer. Up to 16 members reduce-scatter it, an n-th each, and gather the n-ths: 2 m (n - 1) / n elements in all;
- *in steps*: for large buffers and more than 16 members, halving-doubling in messages of a megabyte. Each member has
  log2(n) partners, where sending ahead has n - 1, and the function compiles in a time that grows like log2(n).

Of more than 16 members those beyond a power of two hand their buffer to another one, which sends them the sum: two
messages of m elements in addition.

Received data is summed message by message while it is in the cache, so that no second model is ever received; and in
chunks, since XLA spreads larger operations over its threads. Sums are taken in float32 or wider, in an order that is
the same for all members and elements: their bits are the same everywhere. The first hop carries the buffer's dtype.

All waiting for members is over before an exchange begins (see ``wagma_jax.protocol``): it blocks only while data moves.
"""

from wagma_jax.exchange.wire.jitted import Wire
from wagma_jax.exchange.wire.members import LARGE_BYTES
from wagma_jax.exchange.wire.small import SMALL_BYTES
from wagma_jax.exchange.wire.sums import sum_in_order

__all__ = ["LARGE_BYTES", "SMALL_BYTES", "Wire", "sum_in_order"]
