"""The tiny folders of baselines, each written once."""

import pytest


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """By name, made when first asked for; not to be changed."""
    import tiny_baselines  # which needs torch

    root = tmp_path_factory.mktemp("baselines")

    class Made(dict):
        def __missing__(self, name):
            self[name] = tiny_baselines.write(name, root / name)
            return self[name]

    return Made()
