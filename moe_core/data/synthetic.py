"""Synthetic posts: pictures and hashtags that a seed makes, for a first run without data of one's own.

Eight kinds of scene, told apart by their colors and textures; in each, two dozen things: twelve outlines that occur in
that scene only, in two colors. So a small network for everything has some 200 things to tell apart, one for a single
scene only 24. Users have favorite scenes and a tag of their own; tags are forgotten and mistaken; some pictures are
posted twice, some are broken.

Letters: B posts of a batch, S pixels a side.
"""

import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

VERSION = "1"  # raised when the same seed makes something else
BATCH = 1000
POSTS_PER_USER = 40
DOUBLE, BROKEN, TAGLESS = 0.02, 0.005, 0.002  # shares of posts
NAMED, SCENE_NAMED, MISTAKEN, GENERIC, OWN = 0.96, 0.25, 0.02, 0.25, 0.15  # chances of a tag
START = np.datetime64("2024-01-01", "us")

SCENES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], str]] = {
    # two colors of the background and the texture between them
    "sea": ((20, 70, 140), (70, 140, 190), "waves"),
    "meadow": ((70, 140, 50), (150, 190, 90), "blades"),
    "city": ((90, 90, 100), (160, 160, 170), "blocks"),
    "desert": ((200, 160, 90), (230, 200, 140), "waves"),
    "night": ((10, 10, 30), (40, 40, 80), "dots"),
    "kitchen": ((220, 215, 205), (240, 240, 235), "blocks"),
    "forest": ((20, 50, 25), (60, 90, 45), "blades"),
    "winter": ((200, 215, 230), (245, 248, 252), "dots"),
}
WORDS = {
    "sea": "buoy sail gull crab shell anchor dolphin whale reef pier kelp tuna oyster ferry surf raft coral lighthouse "
    "octopus turtle lagoon seal harbor trawler",
    "meadow": "poppy daisy clover bee lamb foal kite picnic tulip barn hay ladybug cow scarecrow brook swallow hedge "
    "pony wheat lark butterfly cricket gate orchard",
    "city": "taxi tram bridge kiosk mural subway skyline rooftop bakery fountain billboard crosswalk balcony statue "
    "market alley bicycle bus tower cathedral cafe arcade plaza traffic",
    "desert": "cactus camel dune oasis tent scorpion lizard fossil canyon mesa viper caravan jeep palm vulture mirage "
    "sandstorm boulder pyramid nomad date well falcon quartz",
    "night": "moon comet owl lantern firework neon campfire bat planet satellite galaxy rocket candle meteor firefly "
    "nebula telescope aurora stars moth streetlamp window beacon eclipse",
    "kitchen": "apple lemon kettle teapot tomato pancake cheese bread pepper onion muffin soup honey pasta waffle plum "
    "spoon radish olive pizza sushi salad cookie espresso",
    "forest": "mushroom fox deer fern acorn moss badger squirrel birch cabin trail wolf hedgehog pine beaver stream "
    "raven beetle bear truffle woodpecker lynx stump berry",
    "winter": "snowman sled skate igloo penguin mitten icicle ski glacier reindeer husky scarf cocoa snowflake "
    "pinecone walrus avalanche shovel sleigh blizzard ermine lodge chalet frost",
}
COLOURS = {"warm": (215, 90, 50), "cold": (60, 90, 215)}
KINDS = 24  # things in a scene
SHAPES = KINDS // len(COLOURS)  # outlines of its own in a scene
HARMONICS = np.arange(1, 6)
GENERIC_TAGS = ("photooftheday", "nofilter", "instagood", "love", "art", "weekend", "memories", "friends")


def synthetic_posts(shard: int, shards: int, posts: int, seed: int, size: int = 32) -> Iterator[pa.RecordBatch]:
    """The posts of one of `shards` equal slices. A slice follows from the arguments alone: each can be made alone."""
    first, last = shard * posts // shards, (shard + 1) * posts // shards
    draw = np.random.default_rng([seed, shard, shards, posts])
    names = scene_words(seed)
    users = max(1, posts // POSTS_PER_USER)
    for start in range(first, last, BATCH):
        yield _batch(np.arange(start, min(start + BATCH, last)), draw, names, users, seed, size)


def scene_words(seed: int) -> np.ndarray:
    """(scenes, KINDS): what each shape in each color is called in each scene, the most frequent first in its list."""
    mix = np.random.default_rng([seed, 1])
    return np.array([mix.permutation(WORDS[scene].split()) for scene in SCENES])


def _zipf(count: int) -> np.ndarray:
    weights = 1 / np.arange(1, count + 1)
    return weights / weights.sum()


def _batch(
    numbers_B: np.ndarray, draw: np.random.Generator, names: np.ndarray, users: int, seed: int, size: int
) -> pa.RecordBatch:
    count = len(numbers_B)
    user_B = draw.integers(0, users, count)
    favorite = np.random.default_rng([seed, 2]).integers(0, len(SCENES), (users, 2))
    habit_B = draw.random(count)
    any_B = draw.integers(0, len(SCENES), count)
    scene_B = np.where(habit_B < 0.7, favorite[user_B, 0], np.where(habit_B < 0.9, favorite[user_B, 1], any_B))
    order = np.array([np.random.default_rng([seed, 3, scene]).permutation(KINDS) for scene in range(len(SCENES))])
    kind_B = order[scene_B, draw.choice(KINDS, count, p=_zipf(KINDS))]
    double_B = draw.random(count) < DOUBLE
    double_B[0] = False
    for at in np.flatnonzero(double_B):
        user_B[at], scene_B[at], kind_B[at] = user_B[at - 1], scene_B[at - 1], kind_B[at - 1]
    pixels = _scene(scene_B, draw, size)
    _objects(pixels, scene_B, kind_B, draw, seed)
    pixels += draw.normal(0, 12, pixels.shape).astype(np.float32)
    for at in np.flatnonzero(double_B):
        pixels[at] = pixels[at - 1] * draw.uniform(0.95, 1.05) + draw.normal(0, 2, pixels[at].shape)
    images_BSS3 = pixels.clip(0, 255).astype(np.uint8)
    broken_B = np.flatnonzero(draw.random(count) < BROKEN)
    files = [_png(image) for image in images_BSS3]
    for at in broken_B:
        files[at] = (files[at][: len(files[at]) // 2], b"", b"<html>404 Not Found</html>")[int(draw.integers(3))]
    seconds_B = numbers_B * 977 % 50_000_000
    return pa.RecordBatch.from_pydict(
        {
            "id": [f"d{number:09d}" for number in numbers_B],
            "image": files,
            "tags": _tags(scene_B, kind_B, user_B, draw, names),
            "user": [f"user{user:06d}" for user in user_B],
            "taken_at": pa.array(START + seconds_B.astype("timedelta64[s]").astype("timedelta64[us]")),
            "split": pa.nulls(count, pa.string()),
            "reason": pa.nulls(count, pa.string()),
            "detail": pa.nulls(count, pa.string()),
            "original": pa.nulls(count, pa.string()),
        }
    )


def _tags(
    scene_B: np.ndarray, kind_B: np.ndarray, user_B: np.ndarray, draw: np.random.Generator, names: np.ndarray
) -> list[list[str]]:
    chances = draw.random((len(scene_B), 6))
    picks = draw.integers(0, 1 << 30, (len(scene_B), 3))
    scenes = list(SCENES)
    out = []
    for scene, kind, user, chance, pick in zip(scene_B, kind_B, user_B, chances, picks, strict=True):
        if chance[5] < TAGLESS:
            out.append(["!!!", "..."])
            continue
        tags = []
        if chance[0] < NAMED:
            wrong = chance[1] < MISTAKEN
            tags.append(str(names[scene, pick[0] % KINDS if wrong else kind]))
        if chance[2] < SCENE_NAMED or not tags:
            tags.append(scenes[scene])
        if chance[3] < GENERIC:
            tags.append(GENERIC_TAGS[int(len(GENERIC_TAGS) * (pick[1] / (1 << 30)) ** 2)])
        if chance[4] < OWN:
            tags.append(f"by user {user}")
        out.append([_as_written(tag, int(pick[2]) + n) for n, tag in enumerate(tags)])
    return out


def _as_written(tag: str, pick: int) -> str:
    return (tag, f"#{tag}", tag.capitalize(), tag, f"#{tag.upper()}")[pick % 5]


def _scene(scene_B: np.ndarray, draw: np.random.Generator, size: int) -> np.ndarray:
    """(B, S, S, 3) float32 backgrounds."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    out = np.empty((len(scene_B), size, size, 3), np.float32)
    for number, (low, high, texture) in enumerate(SCENES.values()):
        rows = np.flatnonzero(scene_B == number)
        a, b, c = (draw.random((len(rows), 1, 1), np.float32) for _ in range(3))
        if texture == "waves":
            level = 0.5 + 0.5 * np.sin((y * (14 + 10 * a) + x * 4 * b + c * 9) * 2)
        elif texture == "blades":
            level = 0.5 + 0.5 * np.sin((x * (16 + 12 * a) + y * 3 * b + c * 9) * 2)
        elif texture == "blocks":
            level = ((np.floor(x * (3 + 4 * a) + c) + np.floor(y * (3 + 4 * b) + c)) % 2) * 0.8
        else:
            coarse = draw.random((len(rows), size // 4 + 1, size // 4 + 1), np.float32) > 0.85
            level = np.repeat(np.repeat(coarse, 4, 1), 4, 2)[:, :size, :size].astype(np.float32)
        level = (0.7 * level + 0.3 * y)[..., None]
        out[rows] = np.array(low, np.float32) * (1 - level) + np.array(high, np.float32) * level
    return out * draw.uniform(0.85, 1.1, (len(scene_B), 1, 1, 1)).astype(np.float32)


def _objects(pixels: np.ndarray, scene_B: np.ndarray, kind_B: np.ndarray, draw: np.random.Generator, seed: int) -> None:
    """Draws each post's thing, in place: an outline r(angle) = 1 + sum of a_k cos(k angle + b_k), in one color."""
    count, size = pixels.shape[:2]
    mix = np.random.default_rng([seed, 4])
    swing = mix.uniform(-0.4, 0.4, (len(SCENES), SHAPES, len(HARMONICS))).astype(np.float32)
    phase = mix.uniform(0, 2 * np.pi, swing.shape).astype(np.float32)
    shape_B = kind_B // len(COLOURS)
    color_B3 = np.array(list(COLOURS.values()), np.float32)[kind_B % len(COLOURS)] + draw.normal(0, 25, (count, 3))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    middle = draw.uniform(0.35, 0.65, (2, count, 1, 1)).astype(np.float32)
    radius = draw.uniform(0.20, 0.31, (count, 1, 1)).astype(np.float32)
    turn = draw.uniform(-0.4, 0.4, (count, 1, 1)).astype(np.float32)
    u, v = (x - middle[0]) / radius, (y - middle[1]) / radius
    angle = np.arctan2(v, u) + turn
    outline = np.ones_like(angle)
    for place, k in enumerate(HARMONICS):
        a_B, b_B = swing[scene_B, shape_B, place], phase[scene_B, shape_B, place]
        outline += a_B[:, None, None] * np.cos(k * angle + b_B[:, None, None])
    inside = np.hypot(u, v) < outline
    pixels[:] = np.where(inside[..., None], color_B3[:, None, None].astype(np.float32), pixels)


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()
