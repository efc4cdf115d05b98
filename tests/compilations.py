"""How tests compile: with as little work as XLA can, or as users do.

Most of the tests' time goes into compiling what runs for milliseconds. Tests of single bits and of what is compiled
need what users have.
"""

import contextlib
import fcntl
import functools
import os
import threading
from pathlib import Path

from jaxlib import version

# JAX 0.10 has two emitters on CPUs: the older one compiles our small programs in a third of the time. All parts of a
# program in one module of LLVM save another third. Newer versions do not know the first flag and refuse to start.
_QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
_USUAL = {"xla_cpu_use_fusion_emitters": True, "xla_cpu_parallel_codegen_split_count": 32}
_IS_KNOWN = version.__version__.startswith("0.10.")
_WHOLE = b"whole"  # what files of programs end with

AS_USERS_DO = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false", "XLA_FLAGS": ""}
"""The environment of a process that compiles as users do."""


def prepare():
    """Sets the environment for quick compilations, which processes that tests start inherit. Before jax is imported."""
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    given = os.environ.get("XLA_FLAGS", "")
    if _IS_KNOWN and "xla_cpu_use_fusion_emitters" not in given:
        ours = " ".join(f"--{name}={str(value).lower()}" for name, value in _QUICK.items())
        os.environ["XLA_FLAGS"] = f"{given} {ours}".strip()


@functools.cache
def share():
    """Equal programs are compiled once in a run of the tests, by whichever process needs them first.

    JAX's own cache is for programs that take long: it does not wait for a process that compiles the same, as ranks do
    at the same time, and goes through all entries for each new one. Here each program has a file in its place, which
    its lock guards. Called in a process of the tests after jax is imported; what tests start as users do has JAX's
    cache alone.
    """
    from jax._src import compiler
    from jax._src.interpreters import mlir

    if not _IS_KNOWN:
        return
    folder = Path(os.environ["WAGMA_TEST_COMPILATIONS"], "shared")
    folder.mkdir(exist_ok=True)

    def compile_once(backend, computation, executable_devices, compile_options, host_callbacks, name, cache_key):
        compile_it = functools.partial(
            compiler.backend_compile_and_load,
            *(backend, computation, executable_devices, compile_options, host_callbacks),
        )
        if host_callbacks:  # functions of this process
            return compile_it()
        with (folder / cache_key).open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            if content.endswith(_WHOLE):
                serialized = content.removesuffix(_WHOLE)
                return backend.deserialize_executable(serialized, executable_devices, compile_options)
            executable = compile_it()
            file.truncate(0)  # of what a process has left that was killed
            file.write(executable.serialize() + _WHOLE)
        return executable

    compiler._compile_and_write_cache = compile_once
    compiler._cache_read = lambda *_: (None, None)
    # Half of what lowering a small program takes is making a context of MLIR.
    make_context, contexts = mlir.make_ir_context, threading.local()

    def context_of_thread():
        if not hasattr(contexts, "made"):
            contexts.made = make_context()
        return contexts.made

    mlir.make_ir_context = context_of_thread


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
    if _IS_KNOWN:
        compiler.get_compile_options = get_compile_options
    try:
        yield
    finally:
        compiler.get_compile_options = usual
        jax.config.update("jax_disable_most_optimizations", True)
