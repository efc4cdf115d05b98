"""Rows about what happens between ranks: what counts as a failure, and what to do about it."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wagma_jax.commands.doctor.ranks import Ranks
from wagma_jax.commands.doctor.rows import Row
from wagma_jax.commands.launch.mpi import INSTALL

GIGABIT = 0.1e9  # bytes a second that a network of 1 Gbit/s delivers at least
LOCAL_BANDWIDTH = 0.5e9
LOCAL_LATENCY, NETWORK_LATENCY = 2e-4, 2e-3  # seconds

_FREE_CORES = (
    "free the cores that other programs use (top shows them), and try no more ranks than cores: wagma doctor -n 2"
)
_NAME_NETWORK = "wagma doctor --interface 10.0.0.0/24"

# What mpirun or ssh says -> what to do about it.
_START_REMEDIES = {
    r"not enough slots": "ask for no more ranks than mpirun has slots (-n), or name machines with enough of them: "
    "wagma doctor --hosts NAME:SLOTS (a hostfile or a batch job's allocation sets them otherwise)",
    r"daemon|ssh|[Hh]ost ?name|[Hh]ost key|Permission denied|unreachable": "see that ssh HOST true works for every "
    "host without a password, and that the environment is at the same path there",
    r"cannot run|No such file|No module named": "install the same environment at the same path on every host; see "
    "what wagma launch --hosts NAME:SLOTS -- python -c 'import wagma_jax.exchange' says",
}


def judge_start(ranks: Ranks, here: Sequence[Mapping[str, Any]], problem: str | None) -> Row:
    """The row about whether all ranks have started, in one world and with the same versions.

    Args:
        ranks: Those that were to start.
        here: What those that have started say of themselves.
        problem: Why not all have, if so.
    """
    name = "ranks"
    if problem:
        remedies = [remedy for pattern, remedy in _START_REMEDIES.items() if re.search(pattern, problem)]
        if "was not over" in problem:
            remedies = [
                f"see whether {ranks.try_command()} ends; if it does, name the network between the hosts, as in "
                f"{_NAME_NETWORK}"
            ]
        return Row(
            name,
            "fail",
            f"expected {ranks.size} ranks to start and to reach each other, but: {problem}",
            remedies[0] if remedies else f"see what {ranks.try_command()} says",
        )
    sizes = {rank["size"] for rank in here}
    if len(here) != ranks.size or sizes != {ranks.size}:
        return Row(
            name,
            "fail",
            f"expected one world of {ranks.size} ranks, got {len(here)} in worlds of {sorted(sizes)}",
            f"use one MPI on all hosts: {INSTALL}",
        )
    for rank in here:
        for package, version in here[0]["versions"].items():
            if rank["versions"].get(package) != version:
                return Row(
                    name,
                    "fail",
                    f"expected the same versions everywhere, but {package} is {version} on {here[0]['host']} and "
                    f"{rank['versions'].get(package)} on {rank['host']}",
                    f"install the same there: pip install {package}=={version}",
                )
    levels = {rank["host"]: rank["thread_level"] for rank in here}
    if len(set(levels.values())) > 1:
        least = min(levels, key=lambda host: levels[host])
        return Row(
            name,
            "fail",
            f"expected the same thread support everywhere, but MPI on {least} provides less",
            f"see what wagma doctor says on {least}: ssh {least} wagma doctor -n 2",
        )
    return Row(name, "pass", f"{ranks.size} on {', '.join(sorted(levels))}, with the same versions")


def judge_cores(here: Sequence[Mapping[str, Any]]) -> Row:
    """The row about the cores and threads of the ranks."""
    name = "cores"
    fewest = min(rank["threads"] for rank in here)
    if fewest < 2:
        return Row(
            name,
            "warn",
            f"expected XLA to have at least 2 threads in each rank, got {fewest}: a step that computes holds up the "
            "exchange",
            "run unset NPROC, or export NPROC=2",
        )
    crowded = [rank["host"] for rank in here if len(_on_host(here, rank["host"])) > rank["cores"]]
    note = f"; there are more ranks than cores on {crowded[0]}, which makes the figures below worse" if crowded else ""
    least = min(here, key=lambda rank: rank["cores"])
    quota = f" (a container's quota is {least['quota']:g} CPUs)" if least.get("quota") else ""
    return Row(name, "pass", f"{least['cores']} on each host{quota}, {fewest} XLA threads in each rank{note}")


def _on_host(here: Sequence[Mapping[str, Any]], host: str) -> list[Mapping[str, Any]]:
    return sorted((rank for rank in here if rank["host"] == host), key=lambda rank: rank["rank"])


def judge_gpus(here: Sequence[Mapping[str, Any]]) -> Row:
    """The row about which rank sees which GPU."""
    name = "GPUs"
    if not any(rank["gpus"]["count"] for rank in here):
        return Row(name, "pass", "none found: ranks run on the CPU")
    texts = []
    for host in dict.fromkeys(rank["host"] for rank in here):
        ranks = _on_host(here, host)
        count = ranks[0]["gpus"]["count"]
        seen = {rank["rank"]: _seen(rank["gpus"]) for rank in ranks}
        sharing = {gpu: [rank for rank, gpus in seen.items() if gpu in gpus] for gpus in seen.values() for gpu in gpus}
        gpu, sharers = max(sharing.items(), key=lambda item: len(item[1]), default=("", []))
        if len(sharers) > 1:
            visible, fraction = ranks[0]["gpus"]["visible"], ranks[0]["gpus"]["fraction"]
            share = f"ranks {_listed(sharers)} on {host} share GPU {gpu}"
            if len(ranks) > count:
                return Row(
                    name,
                    "warn",
                    f"expected no more ranks than GPUs on a host, but {share}"
                    + (f", with XLA_PYTHON_CLIENT_MEM_FRACTION={fraction}" if fraction else ""),
                    f"start no more ranks than GPUs, as in wagma doctor --hosts {host}:{count}, or see that the ranks "
                    "fit into their parts of the memory",
                )
            return Row(
                name,
                "warn",
                f"expected a GPU for each rank alone, but {share}: CUDA_VISIBLE_DEVICES is {visible}",
                "run unset CUDA_VISIBLE_DEVICES, and each rank sees one GPU",
            )
        each = [f"rank {rank} sees {' '.join(gpus) or 'none'}" for rank, gpus in seen.items()]
        texts.append(f"{count} on {host}: {_listed(each)}" if count else f"none on {host}")
    return Row(name, "pass", _listed(texts, "; "))


def _seen(gpus: Mapping[str, Any]) -> list[str]:
    """The GPUs that a rank sees, as CUDA_VISIBLE_DEVICES names them."""
    if gpus["count"] == 0:
        return []
    if gpus["visible"] is None:
        return [str(gpu) for gpu in range(gpus["count"])]
    # as CUDA reads it: what comes after the first entry that names no device does not count
    return list(itertools.takewhile(re.compile(r"\d+|(GPU|MIG)-.+").fullmatch, gpus["visible"].split(",")))


def _listed(items: Sequence[Any], separator: str = ", ", most: int = 8) -> str:
    return separator.join([*map(str, items[:most]), *(["..."] if len(items) > most else [])])


def judge_links(result: Mapping[str, Any]) -> Row:
    """The row about what ``checkup.links`` has found."""
    slow = []
    for link in result["links"]:
        local = link["hosts"][0] == link["hosts"][1]
        low = link["bytes_per_second"] < (LOCAL_BANDWIDTH if local else GIGABIT)
        if low or link["latency_seconds"] > (LOCAL_LATENCY if local else NETWORK_LATENCY):
            slow.append(link)
    if not slow:
        longest = max(link["latency_seconds"] for link in result["links"])
        least = min(link["bytes_per_second"] for link in result["links"])
        return Row(
            "links", "pass", f"at most {_microseconds(longest)}, at least {_rate(least)} between neighbouring ranks"
        )
    link = min(slow, key=lambda link: link["bytes_per_second"])
    first, second = (f"{rank} ({host})" for rank, host in zip(link["ranks"], link["hosts"], strict=True))
    local = link["hosts"][0] == link["hosts"][1]
    return Row(
        "links",
        "warn",
        f"expected at most {_microseconds(LOCAL_LATENCY if local else NETWORK_LATENCY)} and at least "
        f"{_rate(LOCAL_BANDWIDTH if local else GIGABIT)}, got {_microseconds(link['latency_seconds'])} and "
        f"{_rate(link['bytes_per_second'])} between ranks {first} and {second}",
        _FREE_CORES if local else f"name the fastest network between the hosts, as in {_NAME_NETWORK}",
    )


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.2g} GB/s"


def judge_exchange(result: Mapping[str, Any]) -> tuple[Row, Row]:
    """The rows about what ``checkup.exchange`` has found: of the models, and of the sync rounds."""
    report = "report this with the output of wagma doctor, and see whether wagma doctor --mpirun-args='--mca pml ob1' "
    report += "gives the same"
    bad = [*(f"torn at {text}" for text in result["torn"]), *result["wrong"]]
    models = (
        Row(
            "exchange",
            "fail",
            f"expected {result['models']} whole and exact averages, but {len(bad)} were not: {bad[0]}",
            report,
        )
        if bad
        else Row(
            "exchange",
            "pass",
            f"{result['models']} models, {result['late']} of them late: none torn, {result['known']} checked exactly",
        )
    )
    differing = result["differing"]
    sync = (
        Row("sync", "fail", f"expected models equal bit for bit, but they differ after {', '.join(differing)}", report)
        if differing
        else Row("sync", "pass", f"bit-equal on all ranks after each of {result['syncs']} global means")
    )
    return models, sync


def judge_straggler(result: Mapping[str, Any]) -> Row:
    """The row about what ``checkup.straggler`` has found."""
    seconds, longest, median = (result[f"{name}_seconds"] for name in ("straggle", "longest", "median"))
    waits = f"longest wait {longest * 1e3:.0f} ms, median {median * 1e3:.1f} ms"
    if longest < seconds / 2 and result["met"]:
        return Row("straggler", "pass", f"one rank {seconds:g} s late; the others' {waits}")
    return Row(
        "straggler",
        "fail",
        f"expected nobody to wait {seconds / 2:g} s for a rank that is {seconds:g} s late, got {waits}, and "
        f"{result['met']} averages with what that rank had published before",
        _FREE_CORES,
    )


def judge_problem(name: str, problem: str) -> Row:
    """The row about a step that was not completed."""
    return Row(
        name,
        "fail",
        f"expected this check to be completed, but: {problem}",
        f"if hosts have several networks, name the one between them, as in {_NAME_NETWORK}; else try fewer ranks, "
        "wagma doctor -n 2",
    )
