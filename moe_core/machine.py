"""What hardmoe would compute with on this machine, and what is wrong with it: `hardmoe doctor`."""

import os
import platform
from importlib.metadata import version

import torch

from moe_core import threads
from moe_core.clustering import faiss_build
from moe_core.devices import gpu_names
from moe_core.errors import MissingLibrary
from moe_core.training.loop import uses_bfloat16

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HARDMOE_WORKERS", *threads.VARIABLES)


def describe(experts: int) -> tuple[dict[str, str], list[str]]:
    """(what there is by name, what is wrong and how to mend it), for a study of so many experts."""
    problems = [problem] if (problem := faiss_build.conflict()) else []
    try:
        where = "by torch on the GPU" if torch.cuda.is_available() else "on the CPU"
        faiss = f"{' and '.join(faiss_build.installed())} ({faiss_build.gpus()} GPUs); k-means {where}"
    except MissingLibrary as error:
        faiss = "missing"
        problems.append(str(error))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names, seen = gpu_names(), torch.cuda.device_count()
    if names and not seen:
        problems.append(
            f"the driver lists {_counted(len(names), 'GPU')}, and torch {torch.__version__} sees none: install a build "
            "of torch for CUDA (https://pytorch.org/get-started/locally)"
        )
    of_user = {name: os.environ[name] for name in VARIABLES if os.environ.get(name, "") != threads.SHORT.get(name, "")}
    there = {
        "hardmoe": f"{version('hardmoe')}, Python {platform.python_version()} on {platform.system()}",
        "torch": f"{torch.__version__}, {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'for the CPU'}",
        "GPUs": "; ".join(map(_gpu, range(seen))) or "none",
        "precision": f'"auto" is {"bfloat16" if uses_bfloat16("auto", device) else "float32"} on {device}',
        "FAISS": faiss,
        "cores": f"{threads.cores()}; threads follow from the work in a batch",
        "at once": f"{_counted(seen or threads.workers_for(experts), 'run')} of a study of {experts} experts",
        "set": " ".join(f"{name}={value}" for name, value in of_user.items()) or "nothing",
    }
    return there, problems


def _gpu(number: int) -> str:
    free, total = torch.cuda.mem_get_info(number)
    return f"{number} {torch.cuda.get_device_name(number)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
