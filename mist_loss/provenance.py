"""What a result depends on besides its seed: the commit, the versions of packages, the machine."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("mist-loss", "torch", "numpy", "benchmark-mi", "jax", "scikit-learn", "torch-mist", "latentmi")


def commit() -> str:
    """The commit of the checkout that the code lies in, or "unknown" outside one."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():  # git would answer for any repository further up
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Package to version, of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """One line: processor, cores, threads of torch, Python."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{_processor()}, {cores} cores, torch on {torch.get_num_threads()} threads, "
        f"{platform.system()}, Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
