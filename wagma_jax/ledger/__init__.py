"""What the ranks of a run write down, and what it says: who waited for whom, and how stale contributions were.

Each rank writes a file of JSON lines, ``ledger-RANK.jsonl``, in its own time (``exchange.recorder``). A run that is
resumed goes on in the same files with a new segment, which does some rounds again: those of the segments before it no
longer count. ``entries`` defines the lines for writer and readers. Here are the readers: ``read``, ``align`` (one
timeline for all ranks), ``summarize``, and three views: ``text``, ``plot`` (needs matplotlib) and ``trace`` (for
ui.perfetto.dev); ``report`` makes them all.

Neither JAX nor MPI: ledgers can be read on any machine.
"""

from wagma_jax.ledger.alignment import Alignment, align
from wagma_jax.ledger.picture import plot
from wagma_jax.ledger.plain_text import text
from wagma_jax.ledger.reading import read
from wagma_jax.ledger.reporting import report
from wagma_jax.ledger.segments import RankLedger, Segment
from wagma_jax.ledger.summary import RankSummary, Summary, summarize
from wagma_jax.ledger.tracing import trace

__all__ = [
    "Alignment",
    "RankLedger",
    "RankSummary",
    "Segment",
    "Summary",
    "align",
    "plot",
    "read",
    "report",
    "summarize",
    "text",
    "trace",
]
