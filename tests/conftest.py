import signal

import pytest

# Tests of Ctrl-C need it heard, by children too, and a shell's job in the background is started without.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """A store with two mixtures (helpers/two_mixtures.py): to be copied, not changed."""
    from helpers.two_mixtures import two_mixtures

    root = tmp_path_factory.mktemp("both") / "store"
    two_mixtures(root)
    return root
