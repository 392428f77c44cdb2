"""Which FAISS is installed: for the CPU or for GPUs. Both install the same files, so one excludes the other.

Every module that searches takes FAISS from `import_faiss`.
"""

from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from moe_core.errors import MissingLibrary

NAMES = ("faiss-cpu", "faiss-gpu")
MEND = "pip uninstall -y faiss-cpu faiss-gpu && pip install 'hardmoe[cpu]', or 'hardmoe[gpu]' with an NVIDIA GPU"


def gpus() -> int:
    """GPUs that FAISS computes on, 0 for its build for a CPU. Raises MissingLibrary."""
    faiss = import_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def conflict() -> str:
    """What is wrong where both builds are installed, and how to mend it; "" where only one is. Imports nothing."""
    there = installed()
    if len(there) < 2:
        return ""
    return (
        f"{' and '.join(there)} are both installed, with files of the same names, and what runs is a mixture of the "
        f"two: {MEND}"
    )


def installed() -> tuple[str, ...]:
    """Distributions of FAISS in this environment, such as "faiss-cpu 1.15.1"."""
    found = []
    for name in NAMES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return tuple(found)


def import_faiss() -> ModuleType:
    """The library. Raises MissingLibrary where it is missing or broken, as after one of two builds was uninstalled."""
    try:
        import faiss

        faiss.IndexFlatIP  # noqa: B018  # a folder without files imports, too
    except (ImportError, AttributeError) as error:
        there = " and ".join(installed())
        found = f"{there} cannot be imported ({error})" if there else "there is none"
        raise MissingLibrary(f"FAISS is wanted, and {found}: {MEND}") from None
    return faiss
