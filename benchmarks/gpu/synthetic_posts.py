"""The posts of `moe_core.data.synthetic`, rendered by torch on the device: millions in seconds.

Scenes, outlines, words and chances are the same; the random numbers are torch's, so the posts are others of the same
kind. There are no files, duplicates or broken images. Posts without tags are left out, and so are tags of one user.

Letters: N posts, B posts rendered at once, S pixels a side, T tags of a post at most (padded with -1), K kinds of
thing, G generic tags, H harmonics of an outline.
"""

from dataclasses import dataclass

import numpy as np
import torch
from common import DEVICE
from torch import Tensor

from moe_core.data import synthetic as source

TEXTURES = ("waves", "blades", "blocks", "dots")
CHUNK = 20_000  # posts rendered at once


@dataclass(frozen=True)
class SyntheticPosts:
    """Posts in device memory."""

    images_NSS3: Tensor  # uint8
    tags_NT: Tensor  # int64, positions in `hashtags`, -1 where there is none
    scene_N: Tensor  # int64
    hashtags: list[str]


class Painter:
    """Everything that is the same for all posts of a seed."""

    def __init__(self, posts: int, size: int, seed: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.generator = torch.Generator(device).manual_seed(seed)
        scenes, names = list(source.SCENES), source.scene_words(seed)
        self.hashtags = sorted({*names.ravel().tolist(), *scenes, *source.GENERIC_TAGS})
        number = {tag: v for v, tag in enumerate(self.hashtags)}
        self.names = torch.tensor([[number[tag] for tag in row] for row in names], device=device)
        self.scene_tags = torch.tensor([number[tag] for tag in scenes], device=device)
        self.generic_G = torch.tensor([number[tag] for tag in source.GENERIC_TAGS], device=device)
        users = max(1, posts // source.POSTS_PER_USER)
        self.preferred = torch.from_numpy(np.random.default_rng([seed, 2]).integers(0, len(scenes), (users, 2)))
        self.preferred = self.preferred.to(device)
        orders = [np.random.default_rng([seed, 3, scene]).permutation(source.KINDS) for scene in range(len(scenes))]
        self.kind_order = torch.from_numpy(np.array(orders)).to(device)
        self.zipf_K = torch.tensor(source._zipf(source.KINDS), device=device)
        mix = np.random.default_rng([seed, 4])
        swing = mix.uniform(-0.4, 0.4, (len(scenes), source.SHAPES, len(source.HARMONICS))).astype(np.float32)
        phase = mix.uniform(0, 2 * np.pi, swing.shape).astype(np.float32)
        self.swing, self.phase = torch.from_numpy(swing).to(device), torch.from_numpy(phase).to(device)
        low, high, texture = zip(*source.SCENES.values(), strict=True)
        self.low = torch.tensor(low, device=device, dtype=torch.float32)
        self.high = torch.tensor(high, device=device, dtype=torch.float32)
        self.texture = torch.tensor([TEXTURES.index(name) for name in texture], device=device)
        self.paint = torch.tensor(list(source.COLOURS.values()), device=device, dtype=torch.float32)
        axis_S = torch.arange(size, device=device, dtype=torch.float32) / size
        self.y_S1, self.x_1S = axis_S[:, None], axis_S[None, :]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=self.generator, device=self.device)

    def choose(self, count: int) -> tuple[Tensor, Tensor]:
        """Scene and kind of each post, (B,) each: users have scenes that they prefer, few kinds are frequent."""
        user_B, habit_B = self.integers(len(self.preferred), count), self.uniform(count)
        first_B, second_B = self.preferred[user_B].unbind(1)
        any_B = self.integers(len(self.low), count)
        scene_B = torch.where(habit_B < 0.7, first_B, torch.where(habit_B < 0.9, second_B, any_B))
        rank_B = torch.multinomial(self.zipf_K, count, replacement=True, generator=self.generator)
        return scene_B, self.kind_order[scene_B, rank_B]

    def background(self, scene_B: Tensor) -> Tensor:
        """(B, S, S, 3) float32: the scene's texture between its two shades."""
        count, size, y, x = len(scene_B), self.size, self.y_S1, self.x_1S
        a, b, c = (self.uniform(count, 1, 1) for _ in range(3))
        coarse = (self.uniform(count, size // 4 + 1, size // 4 + 1) > 0.85).float()
        textures = [
            0.5 + 0.5 * torch.sin((y * (14 + 10 * a) + x * 4 * b + c * 9) * 2),
            0.5 + 0.5 * torch.sin((x * (16 + 12 * a) + y * 3 * b + c * 9) * 2),
            ((torch.floor(x * (3 + 4 * a) + c) + torch.floor(y * (3 + 4 * b) + c)) % 2) * 0.8,
            coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :size, :size],
        ]
        level = torch.stack(textures)[self.texture[scene_B], torch.arange(count, device=self.device)]
        level = (0.7 * level + 0.3 * y)[..., None]
        low, high = self.low[scene_B][:, None, None], self.high[scene_B][:, None, None]
        return (low * (1 - level) + high * level) * self.uniform(count, 1, 1, 1, low=0.85, high=1.1)

    def with_thing(self, pixels: Tensor, scene_B: Tensor, kind_B: Tensor) -> Tensor:
        """The background with the post's thing on it: an outline r(angle) = 1 + sum of a_h cos(h angle + b_h)."""
        count = len(scene_B)
        paint_B3 = self.paint[kind_B % len(self.paint)] + 25 * self.normal(count, 3)
        middle_y, middle_x = (self.uniform(count, 1, 1, low=0.35, high=0.65) for _ in range(2))
        radius, turn = self.uniform(count, 1, 1, low=0.20, high=0.31), self.uniform(count, 1, 1, low=-0.4, high=0.4)
        u, v = (self.x_1S - middle_y) / radius, (self.y_S1 - middle_x) / radius
        angle, outline = torch.atan2(v, u) + turn, torch.ones_like(pixels[..., 0])
        shape_B = kind_B // len(self.paint)
        for place, h in enumerate(source.HARMONICS.tolist()):
            swing_B, phase_B = self.swing[scene_B, shape_B, place], self.phase[scene_B, shape_B, place]
            outline += swing_B[:, None, None] * torch.cos(h * angle + phase_B[:, None, None])
        pixels = torch.where((torch.hypot(u, v) < outline)[..., None], paint_B3[:, None, None], pixels)
        return pixels + 12 * self.normal(*pixels.shape)

    def tags(self, scene_B: Tensor, kind_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3) tags, and which posts have any."""
        count = len(scene_B)
        chance, pick = self.uniform(count, 6), self.integers(1 << 30, count, 3)
        named = chance[:, 0] < source.NAMED
        wrong = chance[:, 1] < source.MISTAKEN
        thing = torch.where(wrong, self.names[scene_B, pick[:, 0] % source.KINDS], self.names[scene_B, kind_B])
        generic = self.generic_G[(len(self.generic_G) * (pick[:, 1] / (1 << 30)) ** 2).long()]
        has_scene = (chance[:, 2] < source.SCENE_NAMED) | ~named
        tags_BT = torch.stack(
            [
                torch.where(named, thing, -1),
                torch.where(has_scene, self.scene_tags[scene_B], -1),
                torch.where(chance[:, 3] < source.GENERIC, generic, -1),
            ],
            1,
        )
        return tags_BT, chance[:, 5] >= source.TAGLESS


def synthetic_posts(posts: int, size: int, seed: int = 0, device: str = DEVICE) -> SyntheticPosts:
    """At most `posts` posts; those without tags are left out."""
    painter = Painter(posts, size, seed, torch.device(device))
    images, tags, scenes = [], [], []
    for first in range(0, posts, CHUNK):
        scene_B, kind_B = painter.choose(min(CHUNK, posts - first))
        pixels = painter.with_thing(painter.background(scene_B), scene_B, kind_B)
        tags_BT, tagged_B = painter.tags(scene_B, kind_B)
        images.append(pixels.clamp(0, 255).to(torch.uint8)[tagged_B])
        tags.append(tags_BT[tagged_B])
        scenes.append(scene_B[tagged_B])
    return SyntheticPosts(torch.cat(images), torch.cat(tags), torch.cat(scenes), painter.hashtags)
