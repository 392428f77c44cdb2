"""Does a training that reads posts in blocks of adjacent ones learn as well as one that reads them post by post?

The tiny network on synthetic posts of 16 px, with the same seeds for blocks of 1 and of `--block`: where posts lie in
any order, and sorted by hashtag, so that all posts of a block are of one kind: the worst that a table can be. Printed
are P@1 on held-out posts, and the mean of its differences by seed with a 95 % interval (Student's t).
Example: python benchmarks/blocks.py --seeds 8
"""

import argparse
import io
import statistics
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from scipy.stats import t

from moe_core.data.synthetic import SCENES, WORDS, synthetic_posts
from moe_core.evaluation.metrics import per_post
from moe_core.models.resnet import build
from moe_core.settings import Network, Training
from moe_core.training.infer import features_of, logits_of, probabilities_of
from moe_core.training.loop import train
from moe_core.training.posts import ImagesInMemory, Posts

SIDE, HELD_OUT = 16, 4000
HASHTAGS = [*SCENES, *(word for words in WORDS.values() for word in words.split())]


def drawn(count: int) -> Posts:
    """So many synthetic posts with a hashtag of a scene or a thing."""
    number = {tag: place for place, tag in enumerate(HASHTAGS)}
    images: list[np.ndarray] = []
    tags: list[list[int]] = []
    for batch in synthetic_posts(0, 1, round(count * 1.2), 0):
        for data, written in zip(batch["image"].to_pylist(), batch["tags"].to_pylist(), strict=True):
            known = {number[tag] for raw in written if (tag := raw.strip("#").lower()) in number}
            if known and len(images) < count:
                try:
                    image = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
                except (OSError, SyntaxError):
                    continue
                images.append(np.asarray(image))
                tags.append(sorted(known))
    counts = [len(some) for some in tags]
    flat = torch.tensor([tag for some in tags for tag in some])
    return Posts(ImagesInMemory(np.stack(images)), flat, torch.tensor([0, *np.cumsum(counts)]))


def p_at_1(posts: Posts, held_out: Posts, training: Training) -> float:
    model = build(Network(), len(HASHTAGS), training.seed)
    for _ in train(model, posts, training):
        pass
    features_ND = features_of(model, held_out.images, training.precision)
    probabilities_NV = probabilities_of(logits_of(features_ND, model.fc), training.loss)
    return float(per_post(probabilities_NV, held_out.tags_T, held_out.starts_N1)["p_at_1"].mean())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, default=40_000)
    options.add_argument("--epochs", type=float, default=4)
    options.add_argument("--block", type=int, default=64)
    options.add_argument("--seeds", type=int, default=8)
    args = options.parse_args()
    everything = drawn(args.posts + HELD_OUT)
    held_out = everything.subset(np.arange(HELD_OUT))
    posts = everything.subset(np.arange(HELD_OUT, len(everything)))
    by_tag = np.argsort(posts.tags_T.numpy()[posts.starts_N1[1:].numpy() - 1], kind="stable")
    for name, some in {"any order": posts, "sorted by hashtag": posts.subset(by_tag)}.items():
        found = []
        for seed in range(args.seeds):
            training = Training(epochs=args.epochs, seed=seed)
            found.append([p_at_1(replace(some, block=block), held_out, training) for block in (1, args.block)])
            print(
                f"{name}, seed {seed}: {found[-1][0]:.4f} in blocks of 1, {found[-1][1]:.4f} of {args.block}",
                flush=True,
            )
        apart = [blocks - single for single, blocks in found]
        margin = t.ppf(0.975, len(apart) - 1) * statistics.stdev(apart) / len(apart) ** 0.5
        single, blocks = (statistics.mean(column) for column in zip(*found, strict=True))
        print(
            f"{name}: P@1 {single:.4f} and {blocks:.4f}; difference {statistics.mean(apart):+.4f}, "
            f"95 % interval {statistics.mean(apart) - margin:+.4f} to {statistics.mean(apart) + margin:+.4f}"
        )


if __name__ == "__main__":
    main()
