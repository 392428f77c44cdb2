"""The scripts of a GPU day, at tiny sizes on a CPU: every part records what it should, and its parts compute it."""

import io
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training.loop import Measurement, train
from moe_core.training.order import rows_of_steps
from moe_core.training.posts import ImagesInMemory, ImagesOnDevice, Posts

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "gpu"))

import bare_loops
import c_kmeans
import captured_step
import common
import d_experts
import fatbin
import synthetic_posts

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"
CUDA = "needs a CUDA device"
TINY = Network(widths=(4, 8), depths=(1, 1), embedding=8)
LOOPS = ("project", "project, captured", "before", "bare, captured", "bare", "project, images in host memory")
# what each part records on a CPU, in order: a field that it must hold, or the reason for which it is skipped
EXPECTED = {
    "a_checks": [
        ("machine", "torch"),
        ("waits per step", CUDA),
        ("resuming", "resumed_differs"),
        ("speed after resuming", CUDA),
        ("CUDA in a forked worker", CUDA),
    ],
    "b_step": [
        *((f"tiny32: {what}", "images_per_s") for what in LOOPS),
        ("tiny32: profile of the project's loop", CUDA),
        *((f"resnet50: {what}", "images_per_s") for what in LOOPS),
        ("resnet50: profile of the project's loop", CUDA),
        ("loss of 8 posts, 50 hashtags", "project_ms"),
        *((f"{name}: bare, compiled{more}", CUDA) for name in ("resnet50", "tiny32") for more in ("", " and captured")),
    ],
    "c_kmeans": [
        ("ceilings", CUDA),
        ("K=8: an iteration of the project's fit", "times_reading_once"),
        ("K=8: against torch on the CPU", "differs"),
        ("K=4: an iteration of the project's fit", "times_reading_once"),
        *(
            (f"K={k}: {what}", field)
            for k in (8, 4)
            for what, field in (
                ("floor in ms", CUDA),
                ("assign, float32", "objective"),
                ("assign, tf32", "objective"),
                ("sums by index_add", "differs"),
                ("sums by product", "differs"),
                ("sums by sort", "differs"),
                ("flash-kmeans", CUDA),
            )
        ),
        ("K=4: the project's fit of 1,000 posts, 10 iterations", "objective"),
        ("K=8: the project's assignment", "seconds_cpu"),
        ("K=8: faiss.knn_gpu", CUDA),
        ("K=4: faiss.knn_gpu", CUDA),
        ("K=8: against FAISS on the CPU", "differs"),
    ],
    "d_experts": [
        (f"tiny, batch 8: {what}", field)
        for what, field in (
            ("one after the other", "images_per_s"),
            ("one after the other, captured", "images_per_s"),
            ("captured, 1 streams", "images_per_s"),
            ("captured, 4 streams", CUDA),
            ("captured, 16 streams", CUDA),
            ("fused, captured, contiguous_format", "images_per_s"),
            ("fused, captured, channels_last", "images_per_s"),
            ("2 processes", "answered"),
            ("2 processes, captured", "answered"),
            ("fused, captured, compiled", CUDA),
        )
    ],
    "e_mixture": [
        ("posts", "hashtags"),
        ("trunk", "images_per_s"),
        ("partition", "sizes"),
        ("mixture", "images_per_s"),
        ("random partition", "images_per_s"),
        ("trunk, same budget", "images_per_s"),
        ("P@1 of trunk", "p_at_1"),
        ("P@1 of mixture", "p_at_1"),
        ("P@1 of mixture, router weight", "p_at_1"),
        ("P@1 of random partition", "p_at_1"),
        ("P@1 of random partition, router weight", "p_at_1"),
        ("P@1 of trunk, same budget", "p_at_1"),
    ],
}


def environment(folder):
    """A machine without a CUDA device that has none of the packages that a GPU machine lacks."""
    lacking = folder / "lacking"
    lacking.mkdir()
    for name in ("dagster", "lance", "polars", "torchvision", "scipy", "click", "rich", "psutil"):
        (lacking / f"{name}.py").write_text(f"raise ImportError('the parts must run without {name}')")
    return os.environ | {
        "OUT": str(folder / "results"),
        "PYTHONPATH": os.pathsep.join([str(lacking), str(ROOT)]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def records_in(folder):
    lines = (folder / "results" / "results.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def numbers_of(value):
    if isinstance(value, dict | list):
        values = value.values() if isinstance(value, dict) else value
        return [number for each in values for number in numbers_of(each)]
    return [value] if isinstance(value, float | int) else []


@pytest.fixture(scope="module", params=EXPECTED)
def part(request, tmp_path_factory):
    """A part that has run, and its records."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, "-W", "error", FOLDER / f"{request.param}.py", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(folder), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return request.param, records_in(folder)


def test_a_part_records_every_measurement_or_why_it_is_skipped(part):
    name, records = part
    assert {record["part"] for record in records} == {name[0]}
    recorded = []
    for record, (_, field) in zip(records, EXPECTED[name], strict=True):
        what = "".join(record["what"].partition("router weight")[:2])  # the weight that is chosen may vary
        recorded.append((what, record.get("skipped", field if field in record else record)))
    assert recorded == EXPECTED[name]


def test_every_number_is_finite(part):
    _, records = part
    for record in records:
        numbers = numbers_of(record)
        assert numbers, record
        assert all(math.isfinite(number) for number in numbers), record


def test_a_part_agrees_with_the_cpu(part):
    name, records = part
    for record in records if name in ("a_checks", "c_kmeans") else []:
        assert all(record[field] < 1e-5 for field in ("differs", "resumed_differs") if field in record), record


def posts(count, side=8, tags=5):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Posts(ImagesInMemory(images), torch.arange(count) % tags, torch.arange(count + 1))


def test_a_captured_step_trains_as_the_project_s_loop_does():
    some, training = posts(40), Training(epochs=2, batch_size=8, lr=0.1, flip=False, crop=0, precision="float32")
    theirs, ours = build(TINY, 5, seed=0), build(TINY, 5, seed=0)
    for _ in train(theirs, some, training):
        pass
    images, tags = torch.from_numpy(some.images.images_NHWC), some.tags_T[:, None]
    step = captured_step.Step(ours, images, tags, batch=8, steps=10, lr=0.1, crop=0, bf16=False)
    order = rows_of_steps(40, 8, training.seed, range(10)).reshape(-1)
    step.order = torch.from_numpy(order)
    for _ in range(10):
        step()
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name].double(), tensor.double(), atol=1e-4), name


def test_ten_steps_of_before_end_where_the_project_s_loop_does():
    some = posts(80)
    training = Training(epochs=2, batch_size=8, lr=0.1, flip=False, crop=0, precision="float32")
    theirs, ours = build(TINY, 5, seed=0), build(TINY, 5, seed=0)
    for _ in train(theirs, some, training, until=10):
        pass
    on_device = Posts(ImagesOnDevice(torch.from_numpy(some.images.images_NHWC)), some.tags_T, some.starts_N1)
    bare_loops.ten_steps_of_before(ours, on_device, training, 5)()
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name].double(), tensor.double(), atol=1e-4), name


def test_losses_count_each_tag_of_a_post_alike():
    logits_BV = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    log_BV = logits_BV.log_softmax(1)
    expected = pytest.approx(-float((log_BV[0, 1] + log_BV[0, 2]) / 2 + log_BV[1, 0]) / 2)
    assert float(bare_loops.sparse_loss(logits_BV, torch.tensor([[1, 2], [0, -1]]))) == expected
    assert float(bare_loops.dense_loss(logits_BV, torch.tensor([[0.0, 1, 1], [1, 0, 0]]))) == expected


def test_the_project_s_rate_is_that_of_its_readings_however_many_measurements_they_have():
    speeds = iter([1.0] + [50.0] * 2 + [90.0] * 5 + [100.0] * 100 + [110.0] * 100 + [0.0])
    steps = (Measurement(step, 1000, 1.0, 0.1, speed, step) for step, speed in enumerate(speeds))
    assert common.project_rate(steps, batch=8, seconds=0.0) == {
        "images_per_s": 100,
        "spread": 0.2,
        "ms_per_step": 80.0,
    }


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_experts_answer_as_each_does_alone(layout):
    models = [build(TINY, 5, seed) for seed in range(3)]
    for model in models:
        model.fc.load_state_dict(models[0].fc.state_dict())
    x_BKCHW = torch.randn(4, 3, 3, 8, 8)
    fused_BKV = d_experts.Fused(models, layout)(x_BKCHW)
    for k, model in enumerate(models):
        assert torch.allclose(fused_BKV[:, k], model.train()(x_BKCHW[:, k]), atol=1e-4)


def test_sums_of_clusters_are_the_same_three_ways():
    axis_KP = torch.eye(3, c_kmeans.P)
    x_NP = axis_KP.repeat(20, 1) + 0.01 * torch.randn(60, c_kmeans.P, generator=torch.Generator().manual_seed(0))
    nearest_N, objective = c_kmeans.assign(x_NP, axis_KP)
    assert nearest_N.tolist() == [0, 1, 2] * 20
    assert float(objective) == pytest.approx(float((x_NP * axis_KP[nearest_N]).sum()), rel=1e-5)
    for sums in c_kmeans.SUMS.values():
        for k in range(3):
            assert torch.allclose(sums(x_NP, nearest_N, 3)[k], x_NP[nearest_N == k].sum(0), atol=1e-5)


def test_synthetic_posts_have_the_tags_and_the_pixels_of_the_project_s():
    ours = synthetic_posts.synthetic_posts(3000, 16, seed=0, device="cpu")
    source = synthetic_posts.source
    assert 2960 <= len(ours.images_NSS3) == len(ours.tags_NT) == len(ours.scene_N) <= 3000
    assert (ours.tags_NT >= 0).any(1).all()
    words, scenes = source.scene_words(0), list(source.SCENES)
    assert ours.hashtags == sorted({*words.ravel().tolist(), *scenes, *source.GENERIC_TAGS})
    thing_N, scene_N = ours.tags_NT[:, 0], ours.scene_N.tolist()
    named = [(ours.hashtags[tag], scene) for tag, scene in zip(thing_N.tolist(), scene_N, strict=True) if tag >= 0]
    assert all(word in words[scene] for word, scene in named)
    assert len(named) / 3000 == pytest.approx(source.NAMED, abs=0.02)
    assert float((ours.tags_NT[:, 2] >= 0).float().mean()) == pytest.approx(source.GENERIC, abs=0.03)
    files = [row for batch in source.synthetic_posts(0, 1, 3000, 0, 16) for row in batch["image"].to_pylist()]
    theirs = []
    for file in files:
        try:
            theirs.append(np.asarray(Image.open(io.BytesIO(file)), np.float32).mean())
        except (OSError, SyntaxError):  # some are broken on purpose
            continue
    mean_N = ours.images_NSS3.float().mean((1, 2, 3))
    assert float(mean_N.mean()) == pytest.approx(np.mean(theirs), rel=0.03)
    assert float(mean_N.std()) == pytest.approx(np.std(theirs), rel=0.06)


def fat_binary(*payloads):
    """A fat binary of (kind, architecture, payload): what nvcc puts into a library."""
    packed = b"".join(
        struct.pack("<HHIQIIHHI", kind, 0, 64, len(payload), 0, 0, 0, 0, chip).ljust(64, b"\0") + payload
        for kind, chip, payload in payloads
    )
    return struct.pack("<IHHQ", fatbin.MAGIC, 1, 16, len(packed)) + packed


def test_a_slim_library_keeps_the_code_of_one_chip():
    head, tail = b"head" + struct.pack("<I", fatbin.MAGIC), b"tail"  # the first magic number is there by chance
    payloads = [(2, 80, b"a" * 8), (2, 90, b"b" * 8), (1, 90, b"c" * 8)]
    library = head + fat_binary(*payloads) + tail
    assert [(chip, library[at : at + size]) for chip, at, size in fatbin.entries(library)] == [
        ("sm_80", b"a" * 8),
        ("sm_90", b"b" * 8),
        ("ptx_90", b"c" * 8),
    ]
    zeros = bytes(8)
    expected = head + fat_binary((2, 80, zeros), (2, 90, b"b" * 8), (1, 90, zeros)) + tail
    assert fatbin.slim(library, "sm_90") == expected


def test_wheels_that_the_machine_lacks_are_packed_in_parts(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("polars-2.1.0", "typing_extensions-4.1", "dagster-1.13"):
        (wheels / f"{name}-py3-none-any.whl").write_bytes(os.urandom(3000))
    (tmp_path / "have").write_text("numpy\nTyping-Extensions\n")
    command = ["bash", FOLDER / "graph_parts.sh", wheels, tmp_path / "have", "4000"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    parts = sorted((tmp_path / "build").iterdir(), key=lambda part: int(part.name.rpartition("-")[2]))
    archive = b"".join((part / "part").read_bytes() for part in parts)
    assert len(parts) == -(-len(archive) // 4000) > 1
    listed = subprocess.run(["tar", "-tf", "-"], input=archive, capture_output=True, check=True).stdout.decode()
    packed = {Path(line).name for line in listed.splitlines() if line.endswith(".whl")}
    assert packed == {"polars-2.1.0-py3-none-any.whl", "dagster-1.13-py3-none-any.whl"}


def test_the_command_runs_where_the_project_is_not_installed(tmp_path):
    command = [sys.executable, FOLDER / "hardmoe.py", "demo", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith("Usage: hardmoe demo ")
