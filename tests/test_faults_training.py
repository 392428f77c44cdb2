"""Training of experts under SIGKILL at ten random moments, with each kind of decoder: the same bits in the end."""

import multiprocessing
import random
import shutil
import time

import pytest
import torch

from helpers.joint_work import PRELOAD, network, random_posts
from helpers.joint_work import finish as finish_joint
from helpers.joint_work import joint as joint_training
from moe_core.settings import Training
from moe_core.training.infer import features_of
from moe_core.training.last_layer import refit
from moe_core.training.loop import train
from moe_core.weights import load_weights, save_weights

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOAD)  # as test_joint's: one fork server serves all
TRAINING = Training(epochs=12, batch_size=8, lr=0.1, checkpoint_seconds=1e-9)
KILLS = 10


def train_experts(folder, mode):
    """Two experts against the first decoder, which is then refitted where it is to be; or all together."""
    torch.set_num_threads(1)
    (folder / "begun").touch()
    if mode == "joint":
        found = finish_joint(joint_training(folder / "joint"))
        save_weights(folder / "result", {f"{k}.{n}": t for k, state in found.items() for n, t in state.items()}, {})
        return
    result = {}
    for key, count in (("e000", 40), ("e001", 24)):
        expert = network(key)
        list(
            train(expert, random_posts(count), TRAINING, train_decoder=False, checkpoint=folder / f"{key}.safetensors")
        )
        if mode == "refit":
            features_ND = features_of(expert, random_posts(count).images, "float32", "cpu")
            refit(expert.fc, features_ND, random_posts(count), 4, 0.1, "softmax", 0)
        result |= {f"{key}.{name}": tensor for name, tensor in expert.state_dict().items()}
    save_weights(folder / "result", result, {})


def steps_done(folder):
    found = [load_weights(path)[1] for path in folder.rglob("[!.]*.safetensors")]
    return sum(int(said.get("step", 0)) for said in found)


@pytest.mark.parametrize("mode", ["frozen", "refit", "joint"])
def test_ten_kills_at_random_moments_and_the_same_bits(tmp_path, mode):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    seconds = finish(start(whole, mode))
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # pytest shows it where the test fails
    draw, kills, within = random.Random(seed), 0, 0
    while kills < KILLS or not within:
        assert kills < 10 * KILLS, "no kill comes after a checkpoint"
        process = start(killed, mode)
        process.join(draw.uniform(0, seconds))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            within += steps_done(killed) > 0
        if (killed / "result").exists():  # done before ten kills: once more, from the start
            assert same(killed, whole)
            shutil.rmtree(killed)
            killed.mkdir()
    finish(start(killed, mode))
    assert same(killed, whole)


def start(folder, mode):
    """A process that has begun to train."""
    (folder / "begun").unlink(missing_ok=True)
    process = FORKS.Process(target=train_experts, args=(folder, mode))
    process.start()
    while not (folder / "begun").exists():
        assert process.is_alive()
        time.sleep(0.002)
    return process


def finish(process):
    """Seconds until it is done."""
    began = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def same(one, two):
    mine, theirs = (load_weights(folder / "result")[0] for folder in (one, two))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
