"""Eight virtual CPU devices, and jaxtyping's run-time checks, before anything imports jax."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"

import pathlib

import pytest
from jaxtyping import install_import_hook

install_import_hook("moon_jax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def moon_data() -> pathlib.Path:
    """The folder of real product data (MOON_DATA, default ../shared/data beside the checkout)."""
    root = pathlib.Path(__file__).parents[1]
    folder = pathlib.Path(os.environ.get("MOON_DATA", root / "../shared/data")).resolve()
    if not (folder / "items.jsonl").exists():
        pytest.skip(f"the real product data is not there: no items.jsonl in {folder} (set MOON_DATA)")
    return folder
