"""Which GPUs there are, told without loading torch: planning and the scheduler ask."""

import ctypes
import os
import re
from functools import cache
from itertools import takewhile
from pathlib import Path

NAME = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")
NVML = "libnvidia-ml.so.1"  # of the driver; under WSL2 and gVisor there is no /proc/driver


def gpu_names() -> list[str]:
    """The GPUs that this process may use, by the names it knows them by.

    Where CUDA_VISIBLE_DEVICES is set, its entries, as CUDA reads them: up to the first that names no GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(driver_gpus())]
    return list(takewhile(NAME.fullmatch, (part.strip() for part in visible.split(","))))


@cache
def driver_gpus() -> int:
    """GPUs that the driver lists, or says that it has."""
    if listed := len(list(Path("/proc/driver/nvidia/gpus").glob("*"))):
        return listed
    if (nvml := _open_nvml()) is None:
        return 0
    count = ctypes.c_uint()
    failed = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    nvml.nvmlShutdown()
    return 0 if failed else count.value


def driver_version() -> str:
    """The driver and the newest CUDA that it runs: "NVIDIA 580.95.05, CUDA up to 13.0"; "" where it does not say."""
    if (nvml := _open_nvml()) is None:
        return ""
    text, cuda = ctypes.create_string_buffer(80), ctypes.c_int()
    failed = nvml.nvmlSystemGetDriverVersion(text, len(text))
    failed = failed or nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(cuda))  # 1000 times major, 10 times minor
    nvml.nvmlShutdown()
    return "" if failed else f"NVIDIA {text.value.decode()}, CUDA up to {cuda.value // 1000}.{cuda.value % 1000 // 10}"


def _open_nvml() -> ctypes.CDLL | None:
    """The driver's library, to be shut down after use; None where it is missing or refuses."""
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        return None
    return None if nvml.nvmlInit_v2() else nvml
