"""The README's examples run, and do what they say."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from processes import ROOT, run_ranks

README = (ROOT / "README.md").read_text()
LONGEST = 170  # lines
BEFORE_THE_EXCHANGE = """
import jax.numpy as jnp
from mpi4py import MPI

import wagma_jax as wagma


def local_step(w, opt_state):
    return w + MPI.COMM_WORLD.rank, opt_state


opt_state = ()
"""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def version(diff, sign):
    """The script before (-) or after (+) the difference."""
    return "\n".join(line[1:] for line in diff.splitlines() if not line or line[0] in (" ", sign))


@pytest.mark.parametrize("sign", ["-", "+"])
def test_both_versions_of_the_difference_learn(sign):
    (diff,) = blocks("diff")
    assert sum(line.startswith("+") for line in diff.splitlines()) <= 4
    scope = {}
    exec(version(diff, sign), scope)
    assert ("wagma" in scope) == (sign == "+")
    rng = np.random.default_rng(0)
    w, opt_state = scope["w"], scope["opt_state"]
    for _ in range(150):
        x = jnp.asarray(rng.normal(size=(8, 16, 3)), jnp.float32)
        w, opt_state = scope["train_step"](w, opt_state, x, x @ jnp.array([1.0, -2.0, 3.0]))
    np.testing.assert_allclose(w, np.broadcast_to([1.0, -2.0, 3.0], (8, 3)), atol=0.05)


def test_the_exchange_runs_on_two_ranks(tmp_path):
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    (script,) = blocks("python")
    program = tmp_path / "train.py"
    program.write_text(BEFORE_THE_EXCHANGE + script + "print(exchange.round, info.round, float(w[0]))")
    status, output = run_ranks(2, program, timeout=100)
    assert status == 0, output
    # steps of 0 and 1, a hundred times: the workers' mean, which lateness moves but never to one's own 0 or 100
    lines = [line.split("] ")[1].split() for line in output.splitlines() if line.startswith("[")]
    assert [line[:2] for line in lines] == [["99", "99"]] * 2, output
    assert lines[0][2] == lines[1][2]
    assert 0 < float(lines[0][2]) < 100


def test_the_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)
    assert {"demo", "test"} <= set(commands)
    for command in commands:
        assert f"\n{command}:" in makefile, command


def test_every_algorithm_has_its_line():
    from wagma_jax.algorithms import ALGORITHMS

    for name in ALGORITHMS:
        assert f"| `{name}` |" in README


def test_no_placeholder_is_left():
    assert not re.search(r"\b(RESULTS|TODO|TBD|XXX)\b", README)


def test_it_is_short():
    assert len(README.splitlines()) <= LONGEST


def test_every_page_of_the_docs_is_linked():
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"api.md"} <= set(
        re.findall(r"docs/([\w-]+\.md)", README)
    )


def test_links_inside_the_project_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
