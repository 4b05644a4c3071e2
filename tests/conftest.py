"""Eight virtual CPU devices, and jaxtyping's run-time checks, before anything imports jax."""

import importlib.util
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"

import pathlib
import signal

import pytest
from jaxtyping import install_import_hook

install_import_hook("moon_jax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")
# Started in the background, a program ignores Ctrl-C, and so would the commands that the tests start and stop.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).parents[1]
DATA = pathlib.Path(os.environ.get("MOON_DATA", ROOT / "../shared/data")).resolve()
HAS_DATA = (DATA / "items.jsonl").exists()
HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_AOT = all(importlib.util.find_spec(name) is not None for name in ("libtpu", "jax_cuda12_plugin"))


@pytest.fixture(scope="session")
def moon_data() -> pathlib.Path:
    """The folder of real product data (MOON_DATA, default ../shared/data beside the checkout)."""
    if not HAS_DATA:
        pytest.skip(f"the real product data is not there: no items.jsonl in {DATA} (set MOON_DATA)")
    return DATA


@pytest.fixture(scope="module")
def quick_compilation():
    """Programs of tiny models run once or twice: less time is spent on their machine code."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("torch") and not HAS_TORCH:
            item.add_marker(pytest.mark.skip(reason="torch is not installed: pip install -e '.[torch]'"))
        if item.get_closest_marker("aot") and not HAS_AOT:
            item.add_marker(pytest.mark.skip(reason="no compilers for accelerators: pip install -e '.[aot]'"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip counts as a failure unless the folder or package that the test needs is really absent."""
    report = yield
    excused = ("moon_data" in item.fixturenames and not HAS_DATA) or (
        item.get_closest_marker("torch") is not None and not HAS_TORCH
    )
    excused = excused or (item.get_closest_marker("aot") is not None and not HAS_AOT)
    if report.skipped and not hasattr(report, "wasxfail") and not excused:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped although what it needs is here: {report.longrepr}"
    return report
