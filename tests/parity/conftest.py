import pytest


@pytest.fixture(autouse=True, scope="module")
def quick(quick_compilation):
    """Every module of this folder compiles quickly."""
