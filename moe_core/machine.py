"""What hardmoe would compute with on this machine, and what is wrong with it: `hardmoe doctor`."""

import os
import platform
import shutil
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

from moe_core import threads
from moe_core.clustering import faiss_build
from moe_core.devices import driver_version, gpu_names
from moe_core.errors import HardmoeError, MissingLibrary
from moe_core.settings import Study
from moe_core.store import places
from moe_core.store.cache import default_folder
from moe_core.store.protocols import open_store
from moe_core.text import one_line
from moe_core.training.loop import uses_bfloat16

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HARDMOE_WORKERS", *threads.VARIABLES)
PROBES = 2  # rounds of eight writers
FIT = "https://pytorch.org/get-started/locally, https://docs.nvidia.com/deploy/cuda-compatibility"


def describe(experts: int) -> tuple[dict[str, str], list[str]]:
    """(what there is by name, what is wrong and how to mend it), for a study of so many experts."""
    problems = [problem] if (problem := faiss_build.conflict()) else []
    try:
        faiss, by_faiss = faiss_build.describe(), faiss_build.sees_gpus()
    except MissingLibrary as error:
        faiss, by_faiss = "missing", False
        problems.append(str(error))
    driver, names = driver_version(), gpu_names()
    with warnings.catch_warnings(action="ignore"):  # what torch warns of is told as a problem
        on_gpu = torch.cuda.is_available()
        seen = torch.cuda.device_count() if on_gpu else 0  # which without CUDA is the driver's number
        gpus = [_gpu(number) for number in range(seen)]
        precision = _precision("cuda" if on_gpu else "cpu")
        if seen < len(names):
            problems.append(_unseen(len(names), seen, driver))
    problems += [f"GPU {text}: is it in use? `nvidia-smi` lists by what" for text, works in gpus if not works]
    most = threads.chosen_threads() or threads.threads_for(True, experts)
    there = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    of_user = {name: value for name, value in there.items() if value != threads.SHORT.get(name)}
    machine = {
        "hardmoe": f"{version('hardmoe')}, Python {platform.python_version()} on {platform.system()}",
        "torch": _torch(),
        "driver": driver or "none",
        "GPUs": "; ".join(text for text, _ in gpus) or "none",
        "precision": precision,
        "k-means": f"by {'torch' if on_gpu and not by_faiss else 'FAISS'} on the {'GPU' if on_gpu else 'CPU'}",
        "FAISS": faiss,
        "cores": f"{threads.cores()}; up to {_counted(most, 'thread')} for the training of an expert",
        "workers": f"{len(names) or threads.workers_for(experts)} at once in a study of {experts} experts",
        "variables": " ".join(f"{name}={value}" for name, value in of_user.items()) or "none",
    }
    return machine, problems


def store_of(study: Study, root: Path) -> tuple[str, list[str]]:
    """(where a study's artifacts lie, what is wrong there). A bucket is asked for its owner, and whether it keeps
    `If-None-Match: *`; what that writes is removed."""
    try:
        store = open_store(study, root)
        if store.place is None:
            free = shutil.disk_usage(store.layout.owner.parent).free
            return f"{store.uri}, a folder with {free / 2**30:,.0f} GiB free", []
        began = time.perf_counter()
        owned = places.is_claimed(store.place, study.name)
        seconds = time.perf_counter() - began
        places.probe(store.place, rounds=PROBES)
    except (HardmoeError, OSError) as error:
        return study.store.uri, [f"store: {one_line(error, 1000)}"]
    whose = "this study's" if owned else "empty yet"
    cache = f"cache of {study.store.cache_gib:g} GiB in {default_folder()}"
    return f"{store.uri}, {whose}, answers in {1000 * seconds:.0f} ms and keeps If-None-Match; {cache}", []


def _torch() -> str:
    return f"{torch.__version__}, for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU'}"


def _gpu(number: int) -> tuple[str, bool]:
    """(what a GPU is and has free, whether it computes): one may be full, in exclusive use, or too old for torch."""
    try:
        torch.ones(1, device=f"cuda:{number}").sum().item()
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
    except Exception as error:
        return f"{number} cannot be used: {_first_line(error)}", False
    return f"{number} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free", True


def _precision(device: str) -> str:
    try:
        return f'"auto" means {"bfloat16" if uses_bfloat16("auto", device) else "float32"} on {device}'
    except Exception:
        return f'"auto" cannot be told on {device}'


def _unseen(names: int, seen: int, driver: str) -> str:
    """What is wrong where torch sees fewer GPUs than there are."""
    try:
        torch.cuda.init()
        why = ""
    except Exception as error:
        why = f": {_first_line(error)}"
    by = "CUDA_VISIBLE_DEVICES names" if "CUDA_VISIBLE_DEVICES" in os.environ else "the driver lists"
    return (
        f"{by} {_counted(names, 'GPU')}, and torch ({_torch()}) sees {seen or 'none'}{why}. Driver: "
        f"{driver or 'unknown'}. Install a driver and a build of torch that fit each other: {FIT}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
