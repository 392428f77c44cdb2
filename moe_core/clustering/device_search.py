"""The nearest centroid of posts where they lie: by FAISS on a GPU that its build is for, else by torch.

Letters: B posts, P dimensions, K centroids.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from moe_core.clustering.faiss_build import import_faiss, sees_gpus

Search = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(posts (B, P), centroids (K, P)) -> (inner product with the nearest (B,) float32, which it is (B,) int64)."""


def search_for(device: str) -> Search:
    return by_faiss if device.startswith("cuda") and sees_gpus() else by_torch


def by_torch(rows_BP: Tensor, centroids_KP: Tensor) -> tuple[Tensor, Tensor]:
    inner_B, nearest_B = (rows_BP @ centroids_KP.T).max(1)
    return inner_B, nearest_B


def by_faiss(rows_BP: Tensor, centroids_KP: Tensor) -> tuple[Tensor, Tensor]:
    faiss = _faiss_for_tensors()
    if rows_BP.is_cuda:
        device = rows_BP.get_device()
        with torch.cuda.device(device):  # whose current stream FAISS takes
            how = {"metric": faiss.METRIC_INNER_PRODUCT, "device": device}
            inner_B1, nearest_B1 = faiss.knn_gpu(_resources(device), rows_BP, centroids_KP, 1, **how)
    else:
        inner_B1, nearest_B1 = faiss.knn(rows_BP, centroids_KP, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return inner_B1[:, 0], nearest_B1[:, 0]


@cache
def _faiss_for_tensors() -> Any:
    faiss = import_faiss()
    importlib.import_module("faiss.contrib.torch_utils")  # teaches its functions tensors; those for arrays stay
    return faiss


@cache
def _resources(device: int) -> Any:
    """Memory and handles that FAISS keeps on a GPU."""
    return _faiss_for_tensors().StandardGpuResources()
