"""Memory that goes back to the system while a stage runs that reads all the posts."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import re
from pathlib import Path
import numpy as np
from moe_core.tables.memory import large_blocks_given_back

def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def kept():  # MiB of 128 that were freed, while small blocks behind them live on
    before, large, small = resident(), [], []
    for _ in range(16):
        large.append(np.ones(8 << 20, np.uint8))
        small.append(np.ones(1 << 20, np.uint8))
    large.clear()
    return resident() - before - 16

with large_blocks_given_back():
    print(kept())
print(kept())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are glibc's")
def test_large_blocks_go_back_as_soon_as_they_are_freed():
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    meanwhile, afterwards = map(float, done.stdout.split())
    assert meanwhile < 32
    assert afterwards > 96
