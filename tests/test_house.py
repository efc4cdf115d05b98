"""The house rules: directions of imports, no MPI on import, public names documented."""

import ast
import graphlib
import inspect
import re
import sys

import pytest
from processes import ROOT, run_all

import wagma_jax

# module (or folder) -> what it may import of ours; a folder stands for everything in it
# Leaves of the tree, which whoever likes may import.
EVERYWHERE = {"wagma_jax.choices"}
ALLOWED = {
    "wagma_jax/choices.py": set(),
    "wagma_jax/partitions.py": set(),
    "wagma_jax/schedule.py": {"wagma_jax.partitions"},
    "wagma_jax/averaging.py": set(),
    "wagma_jax/gossip.py": {"wagma_jax.schedule"},
    "wagma_jax/bipartite.py": {"wagma_jax.schedule"},
    "wagma_jax/collectives/axes.py": {"wagma_jax.averaging"},
    "wagma_jax/collectives/packing.py": {"wagma_jax.collectives.axes"},
    "wagma_jax/collectives/lockstep.py": {"wagma_jax.collectives.axes"},
    "wagma_jax/collectives/lowerings.py": {"wagma_jax.averaging", "wagma_jax.schedule"},
    "wagma_jax/collectives/sums.py": {
        "wagma_jax.collectives.axes", "wagma_jax.collectives.lowerings", "wagma_jax.schedule",
    },
    "wagma_jax/collectives": {"wagma_jax.averaging", "wagma_jax.collectives", "wagma_jax.gossip", "wagma_jax.schedule"},
    "wagma_jax/averager.py": {"wagma_jax.averaging", "wagma_jax.collectives", "wagma_jax.schedule"},
    "wagma_jax/keys.py": {"wagma_jax.averaging"},
    "wagma_jax/workers.py": {"wagma_jax.averaging", "wagma_jax.keys", "wagma_jax.schedule"},
    "wagma_jax/transformations.py": {
        "wagma_jax.averager", "wagma_jax.averaging", "wagma_jax.collectives", "wagma_jax.schedule",
    },
    "wagma_jax/algorithms/base.py": {
        "wagma_jax.averager", "wagma_jax.averaging", "wagma_jax.collectives", "wagma_jax.exchange",
        "wagma_jax.gossip", "wagma_jax.protocol", "wagma_jax.schedule",
    },
    "wagma_jax/algorithms/__init__.py": {"wagma_jax.algorithms"},
    "wagma_jax/algorithms": {
        "wagma_jax.algorithms.base", "wagma_jax.algorithms.mixing", "wagma_jax.averager", "wagma_jax.averaging",
        "wagma_jax.bipartite", "wagma_jax.collectives", "wagma_jax.exchange", "wagma_jax.gossip",
        "wagma_jax.protocol.mixing", "wagma_jax.schedule", "wagma_jax.transformations",
    },
    "wagma_jax/protocol/__init__.py": set(),
    "wagma_jax/protocol/messages.py": set(),
    "wagma_jax/protocol/rules.py": set(),
    "wagma_jax/protocol/tree.py": set(),
    "wagma_jax/protocol/facts.py": {"wagma_jax.protocol.messages"},
    "wagma_jax/protocol/increments.py": set(),
    "wagma_jax/protocol/lifecycle.py": {"wagma_jax.protocol.messages", "wagma_jax.protocol.tree"},
    "wagma_jax/protocol/plan.py": {"wagma_jax.protocol.facts", "wagma_jax.schedule"},
    "wagma_jax/protocol/machine.py": {"wagma_jax.protocol.lifecycle"},
    "wagma_jax/protocol/rounds.py": {
        "wagma_jax.protocol.facts", "wagma_jax.protocol.lifecycle", "wagma_jax.protocol.messages",
        "wagma_jax.protocol.plan", "wagma_jax.protocol.tree",
    },
    "wagma_jax/protocol/live.py": set(),
    "wagma_jax/protocol/pairwise.py": {
        "wagma_jax.bipartite", "wagma_jax.protocol.lifecycle", "wagma_jax.protocol.messages",
        "wagma_jax.protocol.rounds",
    },
    "wagma_jax/protocol/mixing.py": set(),
    "wagma_jax/protocol/gossip.py": {
        "wagma_jax.gossip", "wagma_jax.protocol", "wagma_jax.protocol.lifecycle", "wagma_jax.protocol.messages",
    },
    "wagma_jax/jax_internals.py": set(),
    "wagma_jax/threads.py": {"wagma_jax.cpus", "wagma_jax.jax_internals"},
    "wagma_jax/lineage.py": set(),
    "wagma_jax/announcing.py": set(),
    "wagma_jax/leaving.py": {"wagma_jax.lineage"},
    "wagma_jax/cpus.py": set(),
    "wagma_jax/descriptors.py": set(),
    "wagma_jax/exchange/barrier.py": set(),
    "wagma_jax/exchange/headcount.py": {"wagma_jax.exchange.mailbox"},
    "wagma_jax/exchange/isolation.py": {"wagma_jax.jax_internals"},
    "wagma_jax/exchange/callbacks.py": {
        "wagma_jax.exchange.errors", "wagma_jax.exchange.isolation", "wagma_jax.jax_internals", "wagma_jax.threads",
    },
    "wagma_jax/exchange/tags.py": set(),
    "wagma_jax/exchange/errors.py": set(),
    "wagma_jax/exchange/children.py": {"wagma_jax.lineage"},
    "wagma_jax/exchange/ending.py": {"wagma_jax.exchange.children", "wagma_jax.leaving"},
    "wagma_jax/exchange/mailbox.py": {"wagma_jax.exchange.tags"},
    "wagma_jax/exchange/gathering.py": {
        "wagma_jax.exchange.ending", "wagma_jax.exchange.errors", "wagma_jax.exchange.isolation",
        "wagma_jax.exchange.mailbox",
        "wagma_jax.exchange.survey", "wagma_jax.exchange.tags", "wagma_jax.protocol",
    },
    "wagma_jax/exchange/survey.py": {"wagma_jax.exchange.mailbox", "wagma_jax.protocol"},
    "wagma_jax/exchange/farewell.py": {"wagma_jax.exchange.mailbox", "wagma_jax.protocol.tree"},
    "wagma_jax/exchange/schedules.py": {"wagma_jax.schedule"},
    "wagma_jax/exchange/standing.py": {"wagma_jax.schedule"},
    "wagma_jax/exchange/storage.py": {"wagma_jax.averaging"},
    "wagma_jax/exchange/layouts.py": {"wagma_jax.averaging"},
    "wagma_jax/exchange/flattening.py": {"wagma_jax.exchange.layouts", "wagma_jax.exchange.storage"},
    "wagma_jax/exchange/places.py": set(),
    "wagma_jax/exchange/tallies.py": {"wagma_jax.protocol"},
    "wagma_jax/exchange/finite.py": {"wagma_jax.exchange.storage"},
    "wagma_jax/exchange/staging.py": {
        "wagma_jax.averaging", "wagma_jax.exchange.flattening", "wagma_jax.exchange.isolation",
        "wagma_jax.exchange.layouts", "wagma_jax.exchange.places", "wagma_jax.exchange.storage",
    },
    "wagma_jax/exchange/offsets.py": {
        "wagma_jax.exchange.gathering", "wagma_jax.exchange.tags", "wagma_jax.ledger.entries",
        "wagma_jax.protocol.tree",
    },
    "wagma_jax/exchange/recorder.py": {"wagma_jax.ledger.codec", "wagma_jax.ledger.entries"},
    "wagma_jax/exchange/wire/sums.py": set(),
    "wagma_jax/exchange/wire/members.py": {"wagma_jax.exchange.tags", "wagma_jax.exchange.wire.sums"},
    "wagma_jax/exchange/wire": {
        "wagma_jax.averaging", "wagma_jax.exchange.barrier", "wagma_jax.exchange.storage", "wagma_jax.exchange.wire",
        "wagma_jax.jax_internals",
    },
    "wagma_jax/exchange/pool.py": {"wagma_jax.exchange.layouts", "wagma_jax.exchange.storage"},
    "wagma_jax/exchange/models.py": {
        "wagma_jax.exchange.history", "wagma_jax.exchange.pool", "wagma_jax.exchange.staging",
        "wagma_jax.exchange.storage", "wagma_jax.protocol", "wagma_jax.schedule",
    },
    "wagma_jax/exchange/history.py": set(),
    "wagma_jax/exchange/increments.py": {
        "wagma_jax.exchange.history", "wagma_jax.exchange.models", "wagma_jax.exchange.pool",
        "wagma_jax.exchange.staging", "wagma_jax.exchange.standing", "wagma_jax.exchange.storage",
        "wagma_jax.protocol",
    },
    "wagma_jax/exchange/partial.py": {
        "wagma_jax.exchange.gathering", "wagma_jax.exchange.increments", "wagma_jax.exchange.preparation",
        "wagma_jax.exchange.rounds", "wagma_jax.exchange.startup", "wagma_jax.protocol", "wagma_jax.schedule",
    },
    "wagma_jax/exchange/eager.py": {
        "wagma_jax.averaging", "wagma_jax.exchange.base", "wagma_jax.exchange.calls", "wagma_jax.exchange.engine",
        "wagma_jax.exchange.gathering",
        "wagma_jax.exchange.increments", "wagma_jax.exchange.info", "wagma_jax.exchange.partial",
        "wagma_jax.exchange.preparation", "wagma_jax.exchange.standing", "wagma_jax.exchange.startup",
        "wagma_jax.exchange.tallies", "wagma_jax.exchange.transformation", "wagma_jax.ledger.entries",
        "wagma_jax.protocol", "wagma_jax.schedule",
    },
    "wagma_jax/exchange/events.py": {"wagma_jax.exchange.mailbox", "wagma_jax.protocol.messages"},
    "wagma_jax/exchange/waiting.py": {"wagma_jax.exchange.mailbox", "wagma_jax.protocol.machine"},
    "wagma_jax/exchange/engine.py": {
        "wagma_jax.exchange.ending", "wagma_jax.exchange.errors", "wagma_jax.exchange.events",
        "wagma_jax.exchange.farewell",
        "wagma_jax.exchange.isolation", "wagma_jax.exchange.mailbox", "wagma_jax.exchange.recorder",
        "wagma_jax.exchange.storage", "wagma_jax.exchange.waiting", "wagma_jax.exchange.wire",
        "wagma_jax.ledger.entries", "wagma_jax.protocol",
    },
    "wagma_jax/exchange/rounds.py": {
        "wagma_jax.exchange.engine", "wagma_jax.exchange.events", "wagma_jax.exchange.history",
        "wagma_jax.exchange.increments", "wagma_jax.exchange.models", "wagma_jax.exchange.recorder",
        "wagma_jax.exchange.storage", "wagma_jax.exchange.waiting", "wagma_jax.exchange.weighing",
        "wagma_jax.exchange.wire",
        "wagma_jax.ledger.entries", "wagma_jax.protocol",
    },
    "wagma_jax/exchange/weighing.py": {
        "wagma_jax.exchange.pool", "wagma_jax.exchange.storage", "wagma_jax.exchange.wire", "wagma_jax.protocol.rules",
    },
    "wagma_jax/exchange/info.py": {
        "wagma_jax.exchange.increments", "wagma_jax.exchange.models", "wagma_jax.ledger.entries",
        "wagma_jax.protocol", "wagma_jax.schedule",
    },
    "wagma_jax/exchange/startup.py": {
        "wagma_jax.averaging", "wagma_jax.cpus", "wagma_jax.exchange.children", "wagma_jax.exchange.errors",
        "wagma_jax.exchange.gathering", "wagma_jax.exchange.isolation", "wagma_jax.exchange.layouts",
        "wagma_jax.exchange.recorder", "wagma_jax.exchange.staging", "wagma_jax.exchange.standing",
        "wagma_jax.exchange.storage", "wagma_jax.schedule",
    },
    "wagma_jax/exchange/transformation.py": {
        "wagma_jax.averaging", "wagma_jax.exchange.callbacks", "wagma_jax.exchange.staging", "wagma_jax.keys",
        "wagma_jax.schedule", "wagma_jax.transformations",
    },
    "wagma_jax/exchange/calls.py": {
        "wagma_jax.exchange.children", "wagma_jax.exchange.ending", "wagma_jax.exchange.engine",
        "wagma_jax.exchange.errors", "wagma_jax.exchange.gathering", "wagma_jax.exchange.isolation",
        "wagma_jax.exchange.recorder",
    },
    "wagma_jax/exchange/preparation.py": {
        "wagma_jax.exchange.gathering", "wagma_jax.exchange.offsets", "wagma_jax.exchange.startup",
        "wagma_jax.exchange.storage", "wagma_jax.exchange.wire", "wagma_jax.ledger.entries",
    },
    "wagma_jax/exchange/base.py": {
        "wagma_jax.averaging", "wagma_jax.exchange.callbacks", "wagma_jax.exchange.calls",
        "wagma_jax.exchange.children", "wagma_jax.exchange.engine", "wagma_jax.exchange.finite",
        "wagma_jax.exchange.gathering",
        "wagma_jax.exchange.isolation", "wagma_jax.exchange.offsets", "wagma_jax.exchange.preparation",
        "wagma_jax.exchange.startup", "wagma_jax.exchange.storage", "wagma_jax.exchange.tallies",
        "wagma_jax.exchange.transformation", "wagma_jax.ledger.entries", "wagma_jax.protocol",
    },
    "wagma_jax/exchange/alone.py": {
        "wagma_jax.exchange.places", "wagma_jax.exchange.rounds", "wagma_jax.exchange.staging",
        "wagma_jax.exchange.storage",
    },
    "wagma_jax/exchange/deferred.py": {
        "wagma_jax.exchange.places", "wagma_jax.exchange.rounds", "wagma_jax.exchange.staging",
    },
    "wagma_jax/exchange/formulas.py": {
        "wagma_jax.exchange.layouts", "wagma_jax.exchange.pool", "wagma_jax.exchange.storage",
        "wagma_jax.protocol.mixing",
    },
    "wagma_jax/exchange/gossip_engine.py": {
        "wagma_jax.exchange.engine", "wagma_jax.exchange.formulas", "wagma_jax.exchange.pool",
        "wagma_jax.exchange.recorder", "wagma_jax.exchange.staging", "wagma_jax.exchange.storage",
        "wagma_jax.exchange.tags", "wagma_jax.exchange.wire", "wagma_jax.ledger.entries", "wagma_jax.protocol",
    },
    "wagma_jax/exchange/gossip_exchange.py": {
        "wagma_jax.averaging", "wagma_jax.exchange.base", "wagma_jax.exchange.calls",
        "wagma_jax.exchange.engine", "wagma_jax.exchange.finite",
        "wagma_jax.exchange.gathering", "wagma_jax.exchange.gossip_engine", "wagma_jax.exchange.info",
        "wagma_jax.exchange.preparation", "wagma_jax.exchange.staging", "wagma_jax.exchange.standing",
        "wagma_jax.exchange.startup", "wagma_jax.exchange.storage", "wagma_jax.exchange.tallies",
        "wagma_jax.exchange.transformation", "wagma_jax.gossip", "wagma_jax.ledger.entries", "wagma_jax.protocol",
    },
    "wagma_jax/exchange/late.py": {
        "wagma_jax.averaging", "wagma_jax.exchange.staging", "wagma_jax.exchange.storage",
    },
    "wagma_jax/exchange/groups.py": {
        "wagma_jax.exchange.finite", "wagma_jax.exchange.gathering", "wagma_jax.exchange.late",
        "wagma_jax.exchange.models",
        "wagma_jax.exchange.preparation", "wagma_jax.exchange.rounds", "wagma_jax.exchange.schedules",
        "wagma_jax.exchange.staging", "wagma_jax.exchange.standing", "wagma_jax.exchange.startup",
        "wagma_jax.exchange.storage", "wagma_jax.exchange.weighing", "wagma_jax.exchange.wire", "wagma_jax.protocol",
        "wagma_jax.schedule",
    },
    "wagma_jax/exchange/exchange.py": {
        "wagma_jax.averaging", "wagma_jax.exchange.alone", "wagma_jax.exchange.base", "wagma_jax.exchange.calls",
        "wagma_jax.exchange.deferred",
        "wagma_jax.exchange.engine", "wagma_jax.exchange.finite", "wagma_jax.exchange.gathering",
        "wagma_jax.exchange.groups", "wagma_jax.exchange.info", "wagma_jax.exchange.isolation",
        "wagma_jax.exchange.late", "wagma_jax.exchange.models", "wagma_jax.exchange.places",
        "wagma_jax.exchange.preparation", "wagma_jax.exchange.schedules", "wagma_jax.exchange.standing",
        "wagma_jax.exchange.startup", "wagma_jax.exchange.storage", "wagma_jax.exchange.tallies",
        "wagma_jax.exchange.transformation", "wagma_jax.ledger.entries", "wagma_jax.protocol", "wagma_jax.schedule",
    },
    "wagma_jax/exchange/arithmetic.py": {"wagma_jax.exchange.storage"},
    "wagma_jax/exchange/pairs.py": {
        "wagma_jax.exchange.arithmetic", "wagma_jax.exchange.engine", "wagma_jax.exchange.pool",
        "wagma_jax.exchange.recorder", "wagma_jax.exchange.staging", "wagma_jax.exchange.storage",
        "wagma_jax.exchange.tags",
        "wagma_jax.exchange.wire", "wagma_jax.ledger.entries", "wagma_jax.protocol",
    },
    "wagma_jax/exchange/pairwise.py": {
        "wagma_jax.averaging", "wagma_jax.bipartite", "wagma_jax.exchange.base", "wagma_jax.exchange.calls",
        "wagma_jax.exchange.engine",
        "wagma_jax.exchange.finite", "wagma_jax.exchange.gathering", "wagma_jax.exchange.info",
        "wagma_jax.exchange.pairs", "wagma_jax.exchange.preparation", "wagma_jax.exchange.standing",
        "wagma_jax.exchange.startup", "wagma_jax.exchange.storage", "wagma_jax.exchange.tallies",
        "wagma_jax.ledger.entries", "wagma_jax.protocol", "wagma_jax.schedule",
    },
    "wagma_jax/exchange/summing.py": {"wagma_jax.exchange.storage", "wagma_jax.exchange.wire"},
    "wagma_jax/exchange/replay/steps.py": {"wagma_jax.ledger"},
    "wagma_jax/exchange/replay": {
        "wagma_jax.averaging", "wagma_jax.exchange.arithmetic", "wagma_jax.exchange.formulas",
        "wagma_jax.exchange.increments", "wagma_jax.exchange.isolation", "wagma_jax.exchange.late",
        "wagma_jax.exchange.pool", "wagma_jax.exchange.replay", "wagma_jax.exchange.staging",
        "wagma_jax.exchange.storage", "wagma_jax.exchange.summing", "wagma_jax.exchange.weighing",
        "wagma_jax.gossip", "wagma_jax.ledger", "wagma_jax.protocol.mixing",
    },
    "wagma_jax/exchange/__init__.py": {
        "wagma_jax.announcing", "wagma_jax.exchange.base", "wagma_jax.exchange.children", "wagma_jax.exchange.eager",
        "wagma_jax.exchange.errors", "wagma_jax.exchange.exchange", "wagma_jax.exchange.gossip_exchange",
        "wagma_jax.exchange.info", "wagma_jax.exchange.pairwise", "wagma_jax.lineage",
    },
    "wagma_jax/__init__.py": {
        "wagma_jax.algorithms", "wagma_jax.averager", "wagma_jax.averaging", "wagma_jax.collectives",
        "wagma_jax.exchange", "wagma_jax.keys", "wagma_jax.leaving", "wagma_jax.schedule", "wagma_jax.threads",
        "wagma_jax.transformations", "wagma_jax.workers",
    },
    "wagma_jax/ledger/entries.py": {"wagma_jax.schedule"},
    "wagma_jax/ledger/codec.py": {"wagma_jax.ledger.entries"},
    "wagma_jax/ledger/segments.py": {"wagma_jax.ledger.entries", "wagma_jax.schedule"},
    "wagma_jax/ledger/reading.py": {"wagma_jax.ledger.codec", "wagma_jax.ledger.entries", "wagma_jax.ledger.segments"},
    "wagma_jax/ledger/waits.py": {"wagma_jax.ledger.entries", "wagma_jax.ledger.segments"},
    "wagma_jax/ledger/alignment.py": {
        "wagma_jax.ledger.entries", "wagma_jax.ledger.segments", "wagma_jax.ledger.waits",
    },
    "wagma_jax/ledger/summary.py": {
        "wagma_jax.ledger.alignment", "wagma_jax.ledger.entries", "wagma_jax.ledger.segments",
    },
    "wagma_jax/ledger/plain_text.py": {"wagma_jax.ledger.alignment", "wagma_jax.ledger.summary"},
    "wagma_jax/ledger/picture.py": {
        "wagma_jax.ledger.alignment", "wagma_jax.ledger.entries", "wagma_jax.ledger.plain_text",
        "wagma_jax.ledger.segments", "wagma_jax.ledger.summary",
    },
    "wagma_jax/ledger/tracing.py": {
        "wagma_jax.ledger.alignment", "wagma_jax.ledger.entries", "wagma_jax.ledger.plain_text",
        "wagma_jax.ledger.segments",
    },
    "wagma_jax/ledger": {"wagma_jax.ledger"},
    "wagma_jax/commands/launch/job.py": set(),
    "wagma_jax/commands/launch/mpi.py": {"wagma_jax.commands.launch.job"},
    "wagma_jax/commands/launch/variables.py": {"wagma_jax.commands.launch.mpi"},
    "wagma_jax/commands/launch/environment.py": {
        "wagma_jax.commands.launch.job", "wagma_jax.commands.launch.mpi", "wagma_jax.commands.launch.variables",
    },
    "wagma_jax/commands/launch/files.py": set(),
    "wagma_jax/commands/launch/stdin.py": set(),
    "wagma_jax/commands/launch/lines.py": set(),
    "wagma_jax/commands/launch/gpus.py": set(),
    "wagma_jax/commands/launch/pipes.py": set(),
    "wagma_jax/commands/launch/processes.py": set(),
    "wagma_jax/commands/launch/signals.py": set(),
    "wagma_jax/commands/launch/relay.py": {
        "wagma_jax.commands.launch.gpus", "wagma_jax.commands.launch.pipes", "wagma_jax.commands.launch.processes",
        "wagma_jax.commands.launch.signals", "wagma_jax.commands.launch.stdin",
    },
    "wagma_jax/commands/launch/command_line.py": {
        "wagma_jax.commands.launch.environment", "wagma_jax.commands.launch.job", "wagma_jax.commands.launch.mpi",
        "wagma_jax.commands.launch.relay", "wagma_jax.cpus",
    },
    "wagma_jax/commands/launch/running.py": {
        "wagma_jax.commands.launch.job", "wagma_jax.commands.launch.lines", "wagma_jax.commands.launch.mpi",
        "wagma_jax.commands.launch.pipes", "wagma_jax.commands.launch.processes", "wagma_jax.commands.launch.signals",
        "wagma_jax.commands.launch.stdin", "wagma_jax.commands.launch.variables",
    },
    "wagma_jax/commands/launch/launcher.py": {
        "wagma_jax.commands.launch.command_line", "wagma_jax.commands.launch.environment",
        "wagma_jax.commands.launch.files", "wagma_jax.commands.launch.job", "wagma_jax.commands.launch.mpi",
        "wagma_jax.commands.launch.pipes", "wagma_jax.commands.launch.running", "wagma_jax.commands.launch.stdin",
        "wagma_jax.commands.launch.variables", "wagma_jax.cpus", "wagma_jax.lineage",
    },
    "wagma_jax/commands/launch/command.py": {"wagma_jax.commands.launch", "wagma_jax.commands.parsing"},
    "wagma_jax/commands/doctor/checkup.py": {
        "wagma_jax.commands.launch.gpus", "wagma_jax.cpus", "wagma_jax.exchange", "wagma_jax.schedule",
    },
    "wagma_jax/commands/doctor/rows.py": set(),
    "wagma_jax/commands/doctor/probes.py": set(),
    "wagma_jax/commands/doctor/platforms.py": {"wagma_jax.commands.doctor.rows"},
    "wagma_jax/commands/doctor/printing.py": {"wagma_jax.commands.doctor.rows"},
    "wagma_jax/commands/doctor/ranks.py": {"wagma_jax.commands.doctor.probes", "wagma_jax.commands.launch.job"},
    "wagma_jax/commands/doctor/installation.py": {
        "wagma_jax.commands.doctor.probes", "wagma_jax.commands.doctor.rows", "wagma_jax.commands.launch.mpi",
    },
    "wagma_jax/commands/doctor/between_ranks.py": {
        "wagma_jax.commands.doctor.ranks", "wagma_jax.commands.doctor.rows", "wagma_jax.commands.launch.mpi",
    },
    "wagma_jax/commands/doctor/checks.py": {
        "wagma_jax.commands.doctor.between_ranks", "wagma_jax.commands.doctor.installation",
        "wagma_jax.commands.doctor.platforms", "wagma_jax.commands.doctor.printing",
        "wagma_jax.commands.doctor.probes", "wagma_jax.commands.doctor.ranks", "wagma_jax.commands.doctor.rows",
        "wagma_jax.commands.doctor.surroundings", "wagma_jax.commands.launch", "wagma_jax.cpus",
    },
    "wagma_jax/commands/doctor/surroundings.py": {"wagma_jax.commands.doctor.rows", "wagma_jax.commands.launch"},
    "wagma_jax/commands/doctor/command.py": {"wagma_jax.commands.doctor.checks", "wagma_jax.commands.parsing"},
    "wagma_jax/commands/parsing.py": {"wagma_jax.commands.launch.job"},
    "wagma_jax/commands/ledger.py": {"wagma_jax.commands.parsing", "wagma_jax.ledger"},
    "wagma_jax/commands/main.py": {"wagma_jax.commands", "wagma_jax.descriptors"},
    "wagma_jax/commands": set(),
    "wagma_jax/__main__.py": {"wagma_jax.commands.main"},
    "models": {"models"},
    "train": {"models", "train", "wagma_jax"},
}  # fmt: skip
MAY_USE_MPI = ("wagma_jax/exchange", "wagma_jax/commands/doctor/checkup.py", "train/transports/joining.py")


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from {f"{node.module}.{alias.name}" for alias in node.names}


def within(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("path", sources("wagma_jax", "models", "train"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_in_one_direction(path):
    relative = str(path.relative_to(ROOT))
    rules = [allowed for place, allowed in ALLOWED.items() if relative == place or relative.startswith(place + "/")]
    assert rules, f"{relative} needs a line in ALLOWED"
    for name in imports(path):
        if within(name, ["wagma_jax", "models", "train", "tests", "benchmarks"]):
            if name == "wagma_jax.collectives" or name.startswith("wagma_jax."):
                parts = name.split(".")
                # `from wagma_jax import collectives` names a module, `from wagma_jax.schedule import X` a member
                allowed = {*rules[0], *EVERYWHERE}
                assert any(within(name, [rule]) for rule in allowed), f"{relative} imports {'.'.join(parts)}"
            else:
                assert any(within(name, [rule]) for rule in rules[0]), f"{relative} imports {name}"
        if not relative.startswith(MAY_USE_MPI):
            assert not within(name, ["mpi4py", "mpi4jax"]), f"{relative} imports {name}"


def test_import_needs_neither_mpi_nor_the_training_extras():
    absent = ["mpi4py", "mpi4jax", "flax", "matplotlib", "rich", "tyro", "sklearn"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import wagma_jax, wagma_jax.algorithms"
    ((status, output),) = run_all([[sys.executable, "-c", code]], timeout=100)
    assert status == 0, output


def test_a_missing_extra_is_named():
    code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "tyro" else find(name, *rest)
import train.images
"""
    ((status, output),) = run_all([[sys.executable, "-c", code]], timeout=100)
    assert status == 1
    assert "need tyro, which the extra 'train' brings: run make setup" in output


def test_public_names_are_documented():
    for name in wagma_jax.__all__:
        documentation = inspect.getdoc(getattr(wagma_jax, name))
        assert documentation, name
        if inspect.isfunction(getattr(wagma_jax, name)):
            assert "Args:" in documentation, name


# what belongs to one workload; all else in train/ is shared
WORKLOADS = {
    "images": ("train/images.py", "train/presets.py", "train/data/images", "train/fetch.py", "train/demo.py"),
    "navigation": ("train/navigation.py", "train/ppo.py", "train/experience", "train/environments"),
    "translation": (
        "train/translation.py", "train/translation_options.py", "train/translation_presets.py",
        "train/translation_pictures.py", "train/translating.py",
        "train/help_pages.py", "train/data/text",
    ),
}  # fmt: skip
# words of workloads, which shared code must not know
WORDS = re.compile(
    r"\b(images?|accuracy|resnets?|fashion|navigation|spl|episodes?|bleu|sentences?|translat\w+|subwords?"
    r"|vocabular\w+)\b",
    re.IGNORECASE,
)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_shared(path):
    relative = str(path.relative_to(ROOT))
    return not any(relative == place or relative.startswith(place + "/") for p in WORKLOADS.values() for place in p)


def test_no_module_imports_itself_by_detours():
    """Not even inside of functions: but for what a type checker alone sees."""
    paths = {module_of(path): path for path in sources("wagma_jax", "models", "train", "benchmarks")}
    graph = {}
    for module, path in paths.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in paths else node.module for name in names}
        graph[module] = (found & paths.keys()) - {module}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_workloads_know_no_transport_and_shared_code_no_workload():
    shared = [path for path in sources("train") if is_shared(path)]
    assert len(shared) > 20
    for path in sources("train"):
        names = set(imports(path))
        if is_shared(path):
            places = [place.removesuffix(".py").replace("/", ".") for all_of in WORKLOADS.values() for place in all_of]
            assert not any(within(name, places) for name in names), path
            found = WORDS.search(path.read_text())
            assert not found, f"{path}: shared code says {found[0]!r}"
        else:
            assert not any(within(name, ["train.transports"]) for name in names), path


def test_shared_code_names_no_algorithm():
    from wagma_jax.algorithms import ALGORITHMS

    for path in sources("train"):
        if path.name == "demo.py":  # compares three of them
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in ALGORITHMS and "presets" not in path.name:
                pytest.fail(f"{path}:{node.lineno} names an algorithm")


def test_modules_are_small():
    for path in sources("wagma_jax", "models", "train", "benchmarks"):
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{path} has {lines} lines: cut it"
