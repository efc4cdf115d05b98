"""The documentation: every error message is explained, examples run, and public names and commands are listed.

That its links and references hold is checked by the build (`make check`).
"""

import ast
import functools
import importlib.util
import itertools
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
import ranks
from processes import ROOT, run_ranks

import wagma_jax

DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}

# --- Messages ---

# Page -> the sources whose messages it explains.
EXPLAINED = {"troubleshooting": ("wagma_jax",), "troubleshooting-training": ("train", "models")}
# What gets a message as its first argument and shows it to the user, beside exceptions.
SHOWING = {"announced", "tell", "warn", "warn_aside", "error", "Fail", "Abort", "abort"}
# Variables, and functions by what they return or append, that hold parts of messages.
VARIABLES = {"problem", "text", "what"}
FUNCTIONS = {"diagnosis", "_diagnosis", "_difference", "_unlike", "_wrong_files"}
# Our own invariants, the protocol of module attributes, and an exception that carries an exit code only.
EXEMPT = {"AssertionError", "AttributeError", "SystemExit", "StopIteration"}
SHORTEST = 10  # characters of a constant part that must be found


def text_of(node, constants):
    """The constant parts of a string expression, None for every variable part; or None for anything else."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else None
    if isinstance(node, ast.Name) and node.id in constants:
        return [constants[node.id]]
    if isinstance(node, ast.JoinedStr):
        parts = []
        for value in node.values:
            inner = value.value if isinstance(value, ast.FormattedValue) else value
            found = text_of(inner, constants) if isinstance(inner, ast.Constant | ast.Name) else None
            parts += found or [None]
        return parts
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left, constants) or [None]) + (text_of(node.right, constants) or [None])
    return None


def joined(parts):
    """The message with ``...`` for its variable parts."""
    merged = []
    for part in parts:
        if part is None or not merged or merged[-1] is None:
            merged.append(part)
        else:
            merged[-1] += part
    return "".join("..." if part is None else part for part in merged)


def called(node):
    function = node.func if isinstance(node, ast.Call) else node
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def shown(node):
    """The expressions among the children of a statement or expression that become messages."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        if called(node.exc) not in EXEMPT:
            yield from node.exc.args[:1]
    elif isinstance(node, ast.Call) and (called(node) in SHOWING or ast.unparse(node.func) == "super().__init__"):
        yield from node.args[:1]
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "os.write" and ast.unparse(node.args[0]) == "2":
        yield from (part for part in ast.walk(node.args[1]) if isinstance(part, ast.JoinedStr))
    elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in VARIABLES:
        yield node.value
    elif isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Return) and inner.value is not None:
                yield inner.value
            elif isinstance(inner, ast.Call) and called(inner) == "append":
                yield from inner.args


def alternatives(node):
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    return node.values if isinstance(node, ast.BoolOp) else [node]


@functools.cache
def messages(page):
    """Everything that the page's sources say when something is wrong, and where: message -> place."""
    found = {}
    for path in sorted(path for folder in EXPLAINED[page] for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        constants = {}  # of the module
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                value = text_of(node.value, {})
                if value and None not in value:
                    constants[node.targets[0].id] = joined(value)
        for node in ast.walk(tree):
            for expression in itertools.chain.from_iterable(map(alternatives, shown(node))):
                parts = text_of(expression, constants)
                if parts and any(part and re.search("[a-z]{4}", part) for part in parts):
                    place = f"{path.relative_to(ROOT)}:{expression.lineno}"
                    found.setdefault(" ".join(joined(parts).split()), place)
    return found


def fragments(message):
    """The constant parts of a message that its entry must contain, in order."""
    parts = [part.strip() for part in message.split("...")]
    return [part for part in parts if len(part) >= SHORTEST]


def entries(page):
    """The messages of a page's entries: lines in code font, each with a definition below it."""
    return re.findall(r"^`+ ?(.+?) ?`+\n:   \S.*$", PAGES[page], re.MULTILINE)


def contains(text, parts):
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def stands_for(entry, message):
    """Whether an entry has what is constant in a message; word for word where that is too short to tell it."""
    parts = fragments(message)
    return contains(entry, parts) if parts else entry == message


@pytest.mark.parametrize("page", EXPLAINED)
def test_every_message_is_explained(page):
    known = entries(page)
    missing = [
        f"`{message}`\n:   ({place}: what it means, and what to do)\n"
        for message, place in messages(page).items()
        if not any(stands_for(entry, message) for entry in known)
    ]
    assert not missing, f"docs/{page}.md has no entry for\n\n" + "\n".join(missing)


@pytest.mark.parametrize("page", EXPLAINED)
def test_every_explained_message_exists(page):
    stale = [entry for entry in entries(page) if not any(stands_for(entry, message) for message in messages(page))]
    assert not stale, f"docs/{page}.md explains what is no longer said\n\n" + "\n".join(stale)


def test_every_row_of_the_doctor_is_explained():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "wagma_jax/commands/doctor").glob("*.py")]
    named = set()
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Call) and called(node) == "Row":
            first = node.args[0]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "name":
            first = node.value
        else:
            continue
        if isinstance(first, ast.Constant):
            named.add(str(first.value))
    section = PAGES["troubleshooting"].partition("## `wagma doctor`\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([\w /]+)` \|", section, re.MULTILINE)
    assert len(named) > 10
    assert sorted(listed) == sorted(named)


def test_a_new_message_is_found(tmp_path):
    source = 'def f(x):\n    raise ValueError(f"the flux is {x}, expected " "a capacitor" + f" of {x}: buy one")'
    (node,) = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)]
    (expression,) = shown(node)
    message = joined(text_of(expression, {}))
    assert message == "the flux is ..., expected a capacitor of ...: buy one"
    assert fragments(message) == ["the flux is", ", expected a capacitor of"]
    assert contains("the flux is 3, expected a capacitor of 4: buy one", fragments(message))
    assert not contains(", expected a capacitor of 4. the flux is", fragments(message))
    assert stands_for("rank ...: ...", "rank ...: ...")
    assert not stands_for("the rank of ...", "rank ...: ...")


# --- Examples ---


def blocks(page, mark):
    return re.findall(rf"<!-- test: {mark} -->\n```\w+\n(.*?)```", PAGES[page], re.DOTALL)


def test_every_python_example_parses():
    for page, text in PAGES.items():
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            block = textwrap.dedent(block)  # a method of a class may have a block of its own
            compile(block, f"docs/{page}.md", "exec")


def test_the_example_in_one_program_learns():
    (script,) = blocks("index", "run")
    scope = {}
    exec(script, scope)
    assert abs(scope["mean"] - scope["jnp"].array([1.0, -2.0, 3.0])).max() < 0.05
    assert scope["schedule"].num_workers == len(scope["w"]) == 8


def test_the_example_on_a_mesh_reaches_the_mean_of_the_targets(capsys):
    (script,) = blocks("index", "run on a mesh")
    scope = {}
    exec(script, scope)
    assert "8 workers, 2 groups of 4" in capsys.readouterr().out
    np.testing.assert_allclose(scope["mean"], np.broadcast_to(scope["targets"].mean(0), (8, 3)), rtol=1e-4)
    assert (scope["distance"] < 1e-3).all()
    assert len(scope["w"].sharding.device_set) == jax.device_count()


def test_the_example_with_keys_draws_a_mask_for_each_worker():
    (script,) = blocks("index", "run with keys")
    scope = {}
    exec(script, scope)
    assert len(np.unique(np.asarray(scope["y"]) != 0, axis=0)) == len(scope["y"]) == 8


def test_the_example_with_processes_learns(tmp_path):
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    (script,) = blocks("index", "run on 2 ranks")
    program = tmp_path / "train.py"
    program.write_text(script + "\nprint(*w.round(1).tolist())")
    status, output = run_ranks(2, program, timeout=100)
    assert status == 0, output
    lines = [line.split("] ")[1] for line in output.splitlines() if line.startswith("[")]
    assert lines == ["1.0 -2.0 3.0"] * 2, output


def test_schedules_are_described_as_shown(capsys):
    scripts, outputs = blocks("choosing", "run"), blocks("choosing", "output")
    assert len(scripts) == len(outputs) == 2
    for script, output in zip(scripts, outputs, strict=True):
        exec(script, {})
        assert capsys.readouterr().out == output


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def module_of(page, name, tmp_path, monkeypatch):
    """The module that the Python blocks of a page are, in a file of its own."""
    path = tmp_path / f"{name}.py"
    path.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module, path


def test_the_workload_trains_resumes_and_is_evaluated(tmp_path, monkeypatch, capsys):
    commands = "".join(blocks("workload", "commands"))
    alone = re.findall(r"^python -m rings (.*)$", commands, re.MULTILINE)
    launched = re.findall(r"^wagma launch -n 2 -- python -m rings (.*)$", commands, re.MULTILINE)
    assert len(alone) == 3
    assert len(launched) == 1
    rings, path = module_of("workload", "rings", tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for command in alone:
        rings.run.main(rings.WORKLOAD, [*command.split(), *([] if "--evaluate" in command else ["--no-picture"])])
    before, _, evaluated = capsys.readouterr().out.partition("consensus model of runs/one")
    assert "going on from step 400" in before
    found = summary(Path("runs/one"))
    assert (found["steps"], found["workers"], found["test_points"], found["unit"]) == (500, 4, 600, "points")
    assert 0.9 < found["eval"]["accuracy"] <= 1
    assert f"{found['eval']['accuracy']:.2%}" in evaluated

    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    words = launched[0].replace("runs/", f"{tmp_path}/runs/").split()
    ranks.run("train_bodies.run_of", path, [*words, "--no-picture"], num_ranks=2, timeout=100)
    found = summary(Path("runs/two"))
    assert (found["steps"], found["transport"]) == (400, "mpi")
    assert found["late_fraction"] > 0
    assert found["eval"]["accuracy"] > 0.9


def test_the_algorithm_of_ones_own_runs_over_both_transports(tmp_path, monkeypatch):
    own, path = module_of("algorithms", "hierarchical", tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="wait of hierarchical must be 0 or 1, got 2: 1 waits"):
        own.HierarchicalOptions(2)

    targets = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    models, expected = np.zeros((4, 3)), []
    for t in range(7):  # groups of two, all at every third step
        models += 0.1 * (targets - models)
        for group in [[0, 1, 2, 3]] if (t + 1) % 3 == 0 else [[0, 1], [2, 3]]:
            models[group] = models[group].mean(0)
        expected.append(models.copy())

    strategy = own.xla(wagma_jax.algorithms.Settings(4, 2, 3))

    def step(model, state, target):
        after = model + 0.1 * (target - model)
        model, state, _ = strategy.combine(after, model, state, None)
        return model, state

    run = jax.jit(jax.vmap(step, axis_name="data"))
    model, state, found = np.zeros((4, 3), np.float32), jax.vmap(strategy.init)(np.zeros((4, 3), np.float32)), []
    for _ in range(7):
        model, state = run(model, state, targets)
        found.append(np.asarray(model))
    np.testing.assert_allclose(found, expected, atol=1e-6)

    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    per_rank = ranks.run("own_algorithm.trajectory", path, targets, 7, num_ranks=4)
    np.testing.assert_allclose(np.moveaxis(per_rank, 0, 1), expected, atol=1e-6)


def test_the_exported_model_is_read_by_others(tmp_path, monkeypatch):
    from train import images, run

    monkeypatch.chdir(tmp_path)
    options = images.Options(workers=1, steps=4, batch_size=8, out=tmp_path / "runs" / "mine", picture=False)
    found, _ = run.train(images.WORKLOAD, options)
    (script,) = blocks("training", "export")
    scope = {}
    exec(script, scope)
    data = images.Images(options).data
    test = data.test.load(np.arange(len(data.test)), None)
    assert np.mean(scope["classify"](test["image"]) == test["label"]) == pytest.approx(found["eval"]["accuracy"])
    assert scope["description"]["classes"] == list(data.classes)


def commands_of_images():
    """Their options, from the README and all pages."""
    texts = [(ROOT / "README.md").read_text(), *PAGES.values()]
    joined_lines = "\n".join(texts).replace("\\\n", " ")
    found = re.findall(r"python -m train\.images (-[^`\n]*?)(?: +#| & |`|\n)", joined_lines)
    return [command for command in found if "hierarchical" not in command]  # an algorithm that a page builds


def test_the_options_in_the_commands_exist(monkeypatch):
    from train import images, parsing, run

    commands = commands_of_images()
    assert len(commands) >= 12
    monkeypatch.setattr(images.Options, "load", classmethod(lambda cls, folder: cls()))
    monkeypatch.setattr(parsing, "find_options", lambda path: {})
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for command in commands:
        run.parse(images.WORKLOAD, command.replace("...", "").split())


# --- Completeness ---


def test_every_public_name_is_in_the_reference():
    listed = re.findall(r"^::: wagma_jax\.(\w+)$", PAGES["api"], re.MULTILINE)
    assert sorted(listed) == sorted(wagma_jax.__all__)


def test_every_command_is_in_the_reference():
    script = "import hooks; print(sorted(hooks.commands()), hooks._sections())"
    result = subprocess.run([sys.executable, "-c", script], cwd=DOCS, capture_output=True, text=True, check=True)
    sources = [path.read_text() for path in (ROOT / "wagma_jax/commands").rglob("*.py")]
    added = re.findall(r"add_parser\(\s*\"(\w+)\"", "\n".join(sources))
    assert str(sorted(added)) in result.stdout
    assert "--hosts NAME:SLOTS,..." in result.stdout
    assert "<!-- options of wagma -->" in PAGES["api"]


def test_every_picture_is_drawn_by_the_script_and_shown():
    (names,) = re.findall(r"^PICTURES = \((.*)\)$", (DOCS / "pictures.py").read_text(), re.MULTILINE)
    drawn = {f"pictures/{name.replace('_', '-')}.png" for name in names.split(", ")}
    linked = {target for text in PAGES.values() for target in re.findall(r"\]\((pictures/[^)]+)\)", text)}
    demo = {"pictures/demo.png"}  # from a run of make demo
    assert drawn | demo == linked
    assert drawn | demo == {f"pictures/{path.name}" for path in (DOCS / "pictures").iterdir()}
    assert all((DOCS / name).stat().st_size < 100_000 for name in drawn)
