"""How many bytes a worker receives, and moves through memory, in one ordinary round."""

import math


def received_bytes(size: int, itemsize: int, wide: int, members: int, large_bytes: int, small_bytes: int) -> float:
    """Bytes that a worker receives in an ordinary round, as ``wagma_jax.exchange.wire`` sends them.

    Per element they are, in a group of n:

    - two members, and recursive doubling (small buffers): ``itemsize + (log2(n) - 1) wide``;
    - sent ahead (large buffers), and any n that is not a power of two: ``(1 - 1/n) (itemsize + wide)``;
    - halving-doubling (what is in between): ``itemsize / 2 + (1/2 - 1/n) wide + (1 - 1/n) wide``.

    Args:
        size: Elements of the buffer.
        itemsize: Bytes of an element of the buffer, as it travels on the first hop.
        wide: Bytes of an element of a partial sum.
        members: n, the size of the group.
        large_bytes: Buffers of more bytes are sent ahead.
        small_bytes: Buffers of at most so many bytes go by recursive doubling.
    """
    if members == 1:
        return 0.0
    rest = 1 - 1 / members
    if members == 2 or (not members & (members - 1) and size * itemsize <= small_bytes):
        per_element = itemsize + (math.log2(members) - 1) * wide
    elif members & (members - 1) or size * itemsize > large_bytes:
        per_element = rest * (itemsize + wide)
    else:
        per_element = itemsize / 2 + (0.5 - 1 / members) * wide + rest * wide
    return size * per_element


def moved_bytes(size: int, itemsize: int, wide: int, received: float, members: int = 2) -> float:
    """Bytes that ``average()`` moves through memory on one worker that is on time, for a large model.

    The model has n bytes and its sum has w bytes: w = n for float32, 2 n for bfloat16.

    - ``pack`` reads W' and writes the publication: 2 n.
    - The exchange receives ``received`` bytes, which it reads from the memory of the others and sums while they are in
      the cache. It reads the publication (n) and writes the mean (w).
    - In groups of more than two, a worker's share of the sum is written and read before that: 2 w / S.
    - A mean that is wider than the model is rounded: it is read (w), and the result written (n).
    - The leaves of the result are views, and cost nothing.

    In all ``3 n + w + received``, and the extra terms of larger groups and narrow models; for float32 in groups of two
    that is 5 n.

    Args:
        size: Elements of the model.
        itemsize: Bytes of an element.
        wide: Bytes of an element of the sum.
        received: Bytes received, from :func:`received_bytes`.
        members: S, the size of the group.
    """
    model, total = size * itemsize, size * wide
    share = total / members if members > 2 else 0
    return 3 * model + total + received + 2 * share + (total + model if wide != itemsize else 0)
