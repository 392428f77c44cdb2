"""A headless Chromium, and a page that is watched for what it must never do.

HARDMOE_SCREENSHOTS names a folder for pictures of what was seen. Those of the docs (`make screenshots`) are taken of
the study that HARDMOE_SCREENSHOTS_STUDY names: one whose mixture gains on the trunk, such as the demo.
"""

import io
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("HARDMOE_SCREENSHOTS")
SHOWN_STUDY = os.environ.get("HARDMOE_SCREENSHOTS_STUDY")
LONG = 60_000  # milliseconds: runs of the daemon start within some ten seconds
WICKED = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)</script>',
    "](javascript:alert(3))",
    "![x](http://wicked.test/x.png)",
    "http://wicked.test",
    "**bold** | _cell_ `code`",
]


FOREIGN = """() => [...document.querySelectorAll("a[href], img, script, link")]
  .map((node) => node.href ?? node.src)
  .filter((address) => address && !/^(http:\\/\\/127\\.0\\.0\\.1:|blob:|data:)/.test(address))"""


@contextmanager
def launched():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright (in the extra `dev`)")
    with playwright.sync_playwright() as running:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = running.chromium.launch(executable_path=CHROMIUM, args=root)
        yield browser
        browser.close()


class Watched:
    """A page, and what it must never do."""

    def __init__(self, page):
        self.page, self.dialogs, self.strange, self.errors = page, [], [], []
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", self._request)
        page.on("console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _request(self, request):
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:", "file:")):
            self.strange.append(request.url)

    def shoot(self, name):
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            with Image.open(io.BytesIO(self.page.screenshot())) as shot:
                shot.save(Path(SCREENSHOTS) / f"{name}.webp", quality=80, method=6)

    def check(self):
        assert (self.dialogs, self.strange) == ([], [])
        wicked = self.page.locator("img[src='x'], img[src*='wicked'], a[href*='javascript'], a[href*='wicked.test']")
        assert wicked.count() == 0

    def check_own(self):
        """Whatever the page links to or shows comes from its own server."""
        assert (self.dialogs, self.strange, self.errors) == ([], [], [])
        assert self.page.locator("img[src='x'], iframe, form[action]").count() == 0
        assert self.page.evaluate(FOREIGN) == []
