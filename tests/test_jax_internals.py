"""What is used of JAX beyond its documented interface still works, and stands in one module."""

import ast
import contextlib

import failing
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AxisType
from processes import ROOT

from wagma_jax import jax_internals

INTERNALS = ("jax._src", "jax.extend", "jax.interpreters", "jaxlib._jax", "jaxlib.xla_client", "mpi4jax._src")


@pytest.fixture
def effects():
    """A function with ordered effects, and what they have left: the arguments of its calls."""
    seen = []

    def note(x):
        seen.append(int(x))
        return x

    def function(x):
        for _ in range(3):
            x = io_callback(note, x, x, ordered=True) + 1
        return x, {"double": 2 * x}

    return function, seen


def test_effects_inside_are_ordered_and_nothing_is_seen_of_them(effects):
    function, seen = effects
    isolated = jax.jit(jax_internals.without_effects(function))
    assert not jax.make_jaxpr(isolated)(jnp.int32(0)).effects
    assert jax.make_jaxpr(function)(jnp.int32(0)).effects, "the same function as it is has some"
    for start in (10, 20):
        x, others = isolated(jnp.int32(start))
        assert (int(x), int(others["double"])) == (start + 3, 2 * (start + 3))
    assert seen == [10, 11, 12, 20, 21, 22]


def test_one_primitive_serves_all_functions():
    functions = [jax_internals.without_effects(lambda x, by=by: x * by) for by in (2, 3)]
    primitives = set()
    for function, shape in zip(functions * 2, ((), (), (2,), (2,)), strict=True):
        (equation,) = jax.make_jaxpr(function)(jnp.ones(shape)).eqns
        primitives.add(equation.primitive)
    assert len(primitives) == 1
    for function, by in zip(functions, (2, 3), strict=True):
        np.testing.assert_array_equal(jax.jit(function)(jnp.ones(2)), [by, by])


def test_a_step_that_has_failed_is_forgotten():
    failing.dispatcher()()
    for _ in range(2):  # again and again; if JAX has mended it, forget_steps is needed no more
        with pytest.raises(Exception, match="of the step"):
            jax.effects_barrier()
    jax_internals.forget_steps()
    jax.effects_barrier()


def test_contexts_of_a_thread_are_left_and_entered_again():
    compiled = jax.jit(lambda x: x + 1)
    compiled(jnp.float32(1))
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    with contextlib.ExitStack() as stack:
        with pytest.warns(DeprecationWarning, match="with mesh"):
            stack.enter_context(mesh)
        stack.enter_context(set_xla_metadata(place="here"))
        left = jax_internals.leave_contexts()
        assert len(left) == 2
        before = compiled._cache_size()
        compiled(jnp.float32(1))
        assert compiled._cache_size() == before
        jax_internals.enter_contexts(left)
        compiled(jnp.float32(1))
        assert compiled._cache_size() > before, "the contexts matter"
    assert not jax_internals.leave_contexts()


def test_whether_jax_has_begun():
    jnp.zeros(1)
    assert jax_internals.backends_are_initialized()


def test_internals_stand_in_one_module():
    found = set()
    for path in sorted(
        path for folder in ("wagma_jax", "train", "models", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            if any(f"{module}{name}.".startswith(f"{internal}.") for name in names for internal in INTERNALS):
                found.add(str(path.relative_to(ROOT)))
    assert found == {"wagma_jax/jax_internals.py"}
