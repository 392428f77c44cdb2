"""What the page looks at: the mixture that answers, and its posts where a study has them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_core.errors import HardmoeError, MissingInput
from moe_core.service.limits import Room
from moe_core.service.mixture import Mixture
from moe_core.serving.bundle import Bundle
from moe_core.text import one_line

if TYPE_CHECKING:  # answers with a bundle alone need no pyarrow
    from moe_core.search.browse import Browser

IMAGES = 8  # that are looked at together
ALONE = "a bundle has no posts: start `hardmoe serve --study STUDY` to see clusters, posts and the map, and to search"


@dataclass(frozen=True)
class Looked:
    """A mixture and its posts. `why`: why these are not here, or empty."""

    version: str
    bundle: Bundle
    browser: "Browser | None"
    why: str

    @property
    def posts(self) -> "Browser":
        """Raises MissingInput where there are none."""
        if self.browser is None:
            raise MissingInput(self.why)
        return self.browser


class Looking:
    """Opens the posts of the mixture that answers when they are first asked for, and again when another answers.

    `mixture` gives that mixture; `open_posts` the posts of a version and its bundle, and raises HardmoeError where they
    cannot be opened, which is tried again with the next request. Without it there are none, and `why` says why.
    """

    def __init__(
        self,
        mixture: Callable[[], Mixture],
        open_posts: "Callable[[str, Bundle], Browser] | None" = None,
        study: str | None = None,
        why: str = ALONE,
    ) -> None:
        self.study, self.room = study, Room(IMAGES, "images")
        self._why = why
        self._mixture, self._open_posts = mixture, open_posts
        self._opening = threading.Lock()
        self._now: Looked | None = None

    def now(self, again: bool = False) -> Looked:
        """With `again` also other posts of the same mixture, such as those of a shard that arrived."""
        mixture = self._mixture()
        with self._opening:
            there = self._now
            if there is None or there.bundle is not mixture.bundle or there.browser is None:
                self._now = self._opened(mixture)
            elif again and there.browser.is_outdated():
                newer = self._opened(mixture)
                self._now = newer if newer.browser else there
            assert self._now is not None
            return self._now

    def _opened(self, mixture: Mixture) -> Looked:
        if self._open_posts is None:
            return Looked(mixture.version, mixture.bundle, None, self._why)
        try:
            return Looked(mixture.version, mixture.bundle, self._open_posts(mixture.version, mixture.bundle), "")
        except (HardmoeError, OSError) as error:
            return Looked(mixture.version, mixture.bundle, None, one_line(error, 500))
