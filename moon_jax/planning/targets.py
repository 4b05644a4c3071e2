"""Meshes of devices that are not here, for compiling ahead of time: TPU slices by libtpu, GPUs by their description."""

import importlib.util
import os

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from moon_jax.config import ConfigError, MeshConfig
from moon_jax.parallel.mesh import make_mesh
from moon_jax.planning.chips import Chip, Target

# What XLA asks about a GPU, from the data sheet of the Hopper SXM boards; the two differ in their memory.
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  l2_cache_size: 52428800 memory_bandwidth: {bandwidth} device_memory_size: {memory}
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {name}"
"""
_BOARD_MEMORY = {"h100": 80 * 10**9, "h200": 141 * 10**9}
_PACKAGES = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_plugins.xla_cuda12")}


def check_compiler(chip: Chip) -> None:
    """Checks that the compiler for the chip is installed.

    Raises:
        ConfigError: it is not; says what to install.
    """
    for name in _PACKAGES[chip.platform]:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ConfigError(
                f"compiling for {chip.name} needs the package {name.replace('_', '-')}, which is not installed: "
                "pip install 'moon-jax[aot]' (no accelerator is needed)"
            )


def mesh_on(target: Target, config: MeshConfig) -> Mesh:
    """Returns the mesh of the config over the devices of a target, which exist only for the compiler.

    It is laid over them as training lays it over real ones.

    Raises:
        ConfigError: the mesh does not multiply to the number of chips, or the compiler is not installed.
    """
    check_compiler(target.chip)
    return make_mesh(config, _tpus(target) if target.chip.platform == "tpu" else _gpus(target))


def _tpus(target: Target) -> list[jax.Device]:
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may compile at the same time
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nobody is asked which machine this is
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=target.name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"libtpu does not know the topology {target.name}: {error}") from error


def _gpus(target: Target) -> list[jax.Device]:
    chip, (hosts, each) = target.chip, target.shape
    description = _HOPPER.format(
        bandwidth=int(chip.memory_bandwidth), memory=_BOARD_MEMORY[chip.name], name=chip.name.upper()
    )
    return topologies.get_topology_desc(
        chip.name, platform="cuda", target_config=description, topology=f"1x{hosts}x{each}"
    ).devices
