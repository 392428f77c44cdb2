"""Ranks of one training, each in a process of its own."""

import multiprocessing
from datetime import timedelta

import torch
from torch.distributed import FileStore, destroy_process_group, init_process_group

from helpers.random_posts import random_posts
from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training.loop import train
from moe_core.weights import load_weights, save_weights

TRAINING = Training(epochs=10, batch_size=8, lr=0.1, precision="float32", deterministic=True)


def network():
    return build(Network(widths=(4, 8), depths=(1, 1), embedding=8), 4, seed=0)


def trained_by_ranks(folder, backend, devices, ranks=2):
    """The weights in the end, of each rank that has a device. Where fewer have one than `ranks`, each of these trains
    on its own part, and gradients are averaged over them."""
    folder.mkdir()
    context, ends = multiprocessing.get_context("spawn"), []
    for rank, device in enumerate(devices):
        ends.append(folder / f"{rank}.safetensors")
        context.Process(target=_train, args=(folder, backend, device, rank, len(devices), ranks)).start()
    for process in multiprocessing.active_children():
        process.join(120)
        assert process.exitcode == 0
    return [load_weights(end)[0] for end in ends]


def _train(folder, backend, device, rank, world, ranks):
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # to be compared with a CPU
    if backend == "nccl":
        torch.cuda.set_device(device)
    init_process_group(
        backend,
        store=FileStore(str(folder / "meeting"), world),
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=1),
        device_id=torch.device(device) if backend == "nccl" else None,
    )
    model = network()
    for _ in train(model, random_posts(), TRAINING, device=device, rank=rank, ranks=ranks):
        pass
    save_weights(folder / f"{rank}.safetensors", model.state_dict(), {})
    destroy_process_group()
