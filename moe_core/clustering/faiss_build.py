"""Which FAISS is installed: for the CPU or for GPUs. All builds install the same files, so one excludes the others.

Every module that searches takes FAISS from `import_faiss`.
"""

import importlib.util
import sys
from importlib.metadata import Distribution, distributions
from types import ModuleType

from moe_core.errors import MissingLibrary


def check() -> str:
    """What is wrong where several builds are installed; "" where one is. Raises MissingLibrary where none is.

    For the start of a run: imports nothing and takes some 5 ms.
    """
    spec = importlib.util.find_spec("faiss")
    if spec is None or spec.origin is None:  # None: a folder without files
        there = " and ".join(installed())
        raise MissingLibrary(_wanted(f"the files of {there} are gone" if there else "there is none"))
    return conflict()


def conflict() -> str:
    """What is wrong where several builds are installed, and how to mend it; "" otherwise. Imports nothing."""
    there = installed()
    if len(there) < 2:
        return ""
    return (
        f"{' and '.join(there)} are installed together, with files of the same names, and what runs is a mixture of "
        f"them: {_mend()}"
    )


def installed() -> tuple[str, ...]:
    """Distributions of FAISS in the first folder of sys.path that has any, such as ("faiss-cpu 1.15.1",).

    Their names differ (faiss-gpu, faiss-gpu-cu12, conda's faiss, ...), so what counts is what they install.
    """
    for folder in sys.path:
        found = {f"{each.name} {each.version}" for each in distributions(path=[folder]) if _installs_faiss(each)}
        if found:
            return tuple(sorted(found))
    return ()


def _installs_faiss(distribution: Distribution) -> bool:
    """By top_level.txt where there is one: a RECORD may have thousands of lines."""
    if (packages := distribution.read_text("top_level.txt")) is not None:
        return "faiss" in packages.split()
    return "\nfaiss/__init__.py," in "\n" + (distribution.read_text("RECORD") or "")


def describe() -> str:
    """Which FAISS runs, and how many GPUs it sees, if it is built for them. Raises MissingLibrary."""
    faiss = import_faiss()
    name = " and ".join(installed()) or f"faiss {faiss.__version__}"
    if not hasattr(faiss, "StandardGpuResources"):
        return f"{name}, for the CPU"
    return f"{name}, for GPUs, of which it sees {faiss.get_num_gpus()}; hardmoe uses it on the CPU"


def import_faiss() -> ModuleType:
    """The library. Raises MissingLibrary where it is missing or broken, as after one of two builds was uninstalled."""
    import torch  # noqa: F401  # first: faiss-gpu would give a torch for CUDA 13 the cuRAND of CUDA 12 (docs/gpu.md)

    try:
        import faiss

        faiss.IndexFlatIP  # noqa: B018  # a folder without files imports, too
    except (ImportError, AttributeError, RuntimeError) as error:  # RuntimeError: faiss-gpu without CUDA's libraries
        there = " and ".join(installed())
        found = f"{there} cannot be imported ({error})" if there else "there is none"
        raise MissingLibrary(_wanted(found)) from None
    return faiss


def _wanted(found: str) -> str:
    return f"FAISS is wanted, and {found}: {_mend()}"


def _mend() -> str:
    names = [text.split()[0] for text in installed()]
    removed = f"pip uninstall -y {' '.join(names)} && " if names else ""
    return f"{removed}pip install -e '.[cpu]' in the folder of hardmoe's source"
