import pytest


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """A store with two mixtures (two_mixtures.py): to be copied, not changed."""
    from two_mixtures import two_mixtures

    root = tmp_path_factory.mktemp("both") / "store"
    two_mixtures(root)
    return root
