"""The row about the backends that JAX is told to use."""

from collections.abc import Mapping

from wagma_jax.commands.doctor.rows import Row


def judge_platforms(environment: Mapping[str, str]) -> Row:
    """Whether JAX may use the CPU, by which models travel, beside an accelerator.

    Args:
        environment: Where JAX_PLATFORMS may be set.
    """
    name = "platforms"
    platforms = environment.get("JAX_PLATFORMS", "")
    if not platforms:
        return Row(name, "pass", "JAX takes what is there: JAX_PLATFORMS is not set")
    if "cpu" in platforms.split(","):
        return Row(name, "pass", f"JAX_PLATFORMS={platforms}")
    return Row(
        name,
        "fail",
        f"expected JAX_PLATFORMS to name the CPU, by which models travel, got {platforms}",
        f"run export JAX_PLATFORMS={platforms},cpu",
    )
