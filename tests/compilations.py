"""How tests compile: with as little work as XLA can, or as users do.

Most of the tests' time goes into compiling what runs for milliseconds. Tests of single bits and of what is compiled
need what users have.
"""

import contextlib
import os

from jaxlib import version

# JAX 0.10 has two emitters on CPUs: the older one compiles our small programs in a third of the time. All parts of a
# program in one module of LLVM save another third. Newer versions do not know the first flag and refuse to start.
_QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
_USUAL = {"xla_cpu_use_fusion_emitters": True, "xla_cpu_parallel_codegen_split_count": 32}
_HAS_FLAGS = version.__version__.startswith("0.10.")

AS_USERS_DO = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false", "XLA_FLAGS": ""}
"""The environment of a process that compiles as users do."""


def prepare():
    """Sets the environment for quick compilations, which processes that tests start inherit. Before jax is imported."""
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    given = os.environ.get("XLA_FLAGS", "")
    if _HAS_FLAGS and "xla_cpu_use_fusion_emitters" not in given:
        ours = " ".join(f"--{name}={str(value).lower()}" for name, value in _QUICK.items())
        os.environ["XLA_FLAGS"] = f"{given} {ours}".strip()


@contextlib.contextmanager
def as_users_do():
    """Within this context, this process compiles as users do."""
    import jax
    from jax._src import compiler

    usual = compiler.get_compile_options

    def get_compile_options(*args, **kwargs):  # XLA reads its environment once; options of a compilation override it
        options = usual(*args, **kwargs)
        options.env_option_overrides = [*options.env_option_overrides, *_USUAL.items()]
        return options

    jax.config.update("jax_disable_most_optimizations", False)
    if _HAS_FLAGS:
        compiler.get_compile_options = get_compile_options
    try:
        yield
    finally:
        compiler.get_compile_options = usual
        jax.config.update("jax_disable_most_optimizations", True)
