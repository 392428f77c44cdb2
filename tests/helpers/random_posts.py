"""Posts of noise, each with one tag."""

import torch

from moe_core.training.posts import ImagesInMemory, Posts


def random_posts(count=64, hashtags=4):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8, generator=draw)
    return Posts(
        ImagesInMemory(images.numpy()), torch.randint(0, hashtags, (count,), generator=draw), torch.arange(count + 1)
    )


def bright_posts(count=64, hashtags=4):
    """Posts whose tag is their brightness: a network learns it soon."""
    draw = torch.Generator().manual_seed(0)
    tags = torch.arange(count) % hashtags
    images = torch.randint(0, 60, (count, 8, 8, 3), dtype=torch.uint8, generator=draw)
    images += (tags * 60).to(torch.uint8)[:, None, None, None]
    return Posts(ImagesInMemory(images.numpy()), tags, torch.arange(count + 1))
