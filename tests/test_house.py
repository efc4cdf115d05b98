"""The house rules: directions of imports, no MPI on import, public names documented."""

import ast
import inspect
import sys

import pytest
from processes import ROOT, run_all

import wagma_jax

# module (or folder) -> what it may import of ours; a folder stands for everything in it
ALLOWED = {
    "wagma_jax/partitions.py": set(),
    "wagma_jax/schedule.py": {"wagma_jax.partitions"},
    "wagma_jax/averaging.py": set(),
    "wagma_jax/collectives/axes.py": {"wagma_jax.averaging"},
    "wagma_jax/collectives/packing.py": {"wagma_jax.collectives.axes"},
    "wagma_jax/collectives/lockstep.py": {"wagma_jax.collectives.axes"},
    "wagma_jax/collectives/lowerings.py": {"wagma_jax.averaging", "wagma_jax.schedule"},
    "wagma_jax/collectives/sums.py": {
        "wagma_jax.collectives.axes", "wagma_jax.collectives.lowerings", "wagma_jax.schedule"
    },
    "wagma_jax/collectives": {"wagma_jax.averaging", "wagma_jax.collectives", "wagma_jax.schedule"},
    "wagma_jax/averager.py": {"wagma_jax.averaging", "wagma_jax.schedule", "wagma_jax.collectives"},
    "wagma_jax/workers.py": {"wagma_jax.schedule"},
    "wagma_jax/transformations.py": {
        "wagma_jax.averager", "wagma_jax.averaging", "wagma_jax.collectives", "wagma_jax.schedule"
    },
    "wagma_jax/algorithms/base.py": {
        "wagma_jax.averaging", "wagma_jax.collectives", "wagma_jax.exchange", "wagma_jax.schedule"
    },
    "wagma_jax/algorithms/__init__.py": {"wagma_jax.algorithms"},
    "wagma_jax/algorithms": {"wagma_jax.algorithms.base", "wagma_jax.averager", "wagma_jax.schedule"},
    "wagma_jax/exchange/buffers.py": set(),
    "wagma_jax/exchange/protocol.py": {"wagma_jax.schedule"},
    "wagma_jax/exchange/carriers.py": {"wagma_jax.averaging"},
    "wagma_jax/exchange/wire.py": {"wagma_jax.averaging", "wagma_jax.exchange.buffers", "wagma_jax.exchange.carriers"},
    "wagma_jax/exchange/staging.py": {
        "wagma_jax.averaging", "wagma_jax.exchange.buffers", "wagma_jax.exchange.carriers"
    },
    "wagma_jax/exchange/clocks.py": set(),
    "wagma_jax/exchange/meeting.py": set(),
    "wagma_jax/exchange/replay.py": {
        "wagma_jax.averaging", "wagma_jax.exchange.buffers", "wagma_jax.exchange.carriers",
        "wagma_jax.exchange.staging", "wagma_jax.exchange.wire", "wagma_jax.ledger",
    },
    "wagma_jax/exchange/ledger.py": set(),
    "wagma_jax/exchange/engine.py": {
        "wagma_jax.exchange.buffers", "wagma_jax.exchange.ledger", "wagma_jax.exchange.protocol",
        "wagma_jax.exchange.wire",
    },
    "wagma_jax/exchange/checkup.py": {
        "wagma_jax.exchange.group_exchange", "wagma_jax.exchange.meeting", "wagma_jax.schedule"
    },
    "wagma_jax/exchange": {
        "wagma_jax.averaging", "wagma_jax.exchange", "wagma_jax.ledger", "wagma_jax.schedule",
        "wagma_jax.transformations",
    },
    "wagma_jax/__init__.py": {
        "wagma_jax.averager", "wagma_jax.averaging", "wagma_jax.collectives", "wagma_jax.exchange",
        "wagma_jax.schedule", "wagma_jax.transformations", "wagma_jax.workers",
    },
    "wagma_jax/launch.py": set(),
    "wagma_jax/doctor.py": {"wagma_jax.launch"},
    "wagma_jax/ledger.py": {"wagma_jax.schedule"},
    "wagma_jax/cli.py": {"wagma_jax.doctor", "wagma_jax.launch", "wagma_jax.ledger"},
    "models": {"models"},
    "train": {"wagma_jax", "models", "train"},
}  # fmt: skip
MAY_USE_MPI = ("wagma_jax/exchange", "wagma_jax/launch.py")


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
                assert any(within(name, [rule]) for rule in rules[0]), f"{relative} imports {'.'.join(parts)}"
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


def test_training_scripts_do_not_branch_on_algorithms():
    from wagma_jax.algorithms import ALGORITHMS

    for path in sources("train"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                constants = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                assert not set(constants) & set(ALGORITHMS), f"{path}:{node.lineno} compares an algorithm's name"
