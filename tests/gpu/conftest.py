"""Each test of this folder runs on the CPU, too, in the GPU's place: there it needs no GPU, and says the same.

They need torch, numpy, pillow, pytest, safetensors and pydantic alone (tests/test_gpu_tests.py).
"""

import pytest
import torch

CUDA = torch.cuda.is_available()
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a CUDA device")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_GPU)])
def device(request):
    return request.param


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Networks are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """Convolutions in TF32 have ten bits: an image between two experts would go to another one than on the CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
