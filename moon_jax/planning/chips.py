"""The accelerators that a run can be planned for: what they can do at most, and how they are wired together.

Peaks are the makers' numbers; memory is what a program may fill. Link numbers are one way, of one link:
cloud.google.com/tpu/docs gives all links of a chip together, nvidia.com both directions of all NVLinks.
"""

import dataclasses
import math
import re

from moon_jax.config import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator. Bytes and seconds are plain units, never GB or ms."""

    name: str
    platform: str  # "tpu" | "gpu"
    peak_flops: float  # bfloat16; a multiply-add counts two
    memory: float  # bytes that a program may fill
    memory_bandwidth: float  # bytes a second
    link: float  # bytes a second, one way: of one ICI link, or of all NVLinks of a GPU
    dimensions: int = 0  # of the TPU's torus
    wraps: int = 0  # a torus dimension that is a multiple of this is a ring, otherwise a line
    network: float = 0.0  # bytes a second, one way: of a GPU's share of the network between hosts
    host: int = 8  # GPUs of one host
    shapes: tuple[str, ...] = ()  # topology of the usual sizes
    float32_flops: float = 0.0  # of a GPU, beside its tensor cores, which would round to TF32

    def peak(self, dtype: str) -> float:
        """Returns the multiplications a second at most of a model that computes in "bfloat16" or "float32".

        Training multiplies float32 at the highest precision: six bfloat16 products on a TPU, the float32 units of a
        GPU.
        """
        if dtype == "bfloat16":
            return self.peak_flops
        return self.peak_flops / 6 if self.platform == "tpu" else self.float32_flops


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # the slices that v5e and v6e are sold in
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")  # v4 and v5p: the most compact ones

# A program gets .92 of what CUDA says that the card has (XLA_PYTHON_CLIENT_MEM_FRACTION=.92 in launch/): 79.1 and 139.8
# GiB, which is half a GiB less than nvidia-smi's. The rest is for CUDA itself, NCCL's buffers and cuBLAS.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 31.75 * GIB, 1.23e12, 50e9, 3, 4, shapes=_CUBIC),
        Chip("v5e", "tpu", 197e12, 15.75 * GIB, 0.82e12, 50e9, 2, 16, shapes=_FLAT),
        Chip("v5p", "tpu", 459e12, 95.74 * GIB, 2.77e12, 100e9, 3, 4, shapes=_CUBIC),
        Chip("v6e", "tpu", 918e12, 31.25 * GIB, 1.64e12, 112e9, 2, 16, shapes=_FLAT),
        Chip("h100", "gpu", 989e12, 0.92 * 79.1 * GIB, 3.35e12, 450e9, network=50e9, float32_flops=67e12),
        Chip("h200", "gpu", 989e12, 0.92 * 139.8 * GIB, 4.8e12, 450e9, network=50e9, float32_flops=67e12),
    )
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of chips and how they lie: what `--topology` names."""

    chip: Chip
    shape: tuple[int, ...]  # of the torus; (hosts, GPUs of a host) of a GPU

    @property
    def count(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """What `parse_target` reads."""
        size = str(self.count) if self.chip.platform == "gpu" else "x".join(map(str, self.shape))
        return f"{self.chip.name}:{size}"


def parse_target(text: str, chips: int = 0) -> Target:
    """Returns the target that a name like "v5p:4x4x16" or "h200:64" stands for.

    Args:
        text: the chip and its topology; without one, `chips` chips in their usual shape.
        chips: number of chips, 0 = as the name says.

    Raises:
        ConfigError: there is no such chip, or it has no such shape.
    """
    name, _, size = text.partition(":")
    if name not in CHIPS:
        raise ConfigError(f"--topology {text!r}: there is no chip {name!r}; there are {', '.join(CHIPS)}")
    chip = CHIPS[name]
    if size and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise ConfigError(f"--topology {text!r}: the size is written as {_example(chip)}")
    shape = tuple(map(int, size.split("x"))) if size else ()
    if chips and shape and math.prod(shape) != chips:
        raise ConfigError(f"--topology {text!r} has {math.prod(shape)} chips, --chips asks for {chips}")
    count = math.prod(shape) if shape else chips
    if not count:
        raise ConfigError(f"--topology {text!r} says no size: write {_example(chip)}, or give --chips")
    if chip.platform == "gpu":
        if len(shape) > 1 or (count > chip.host and count % chip.host):
            raise ConfigError(f"--topology {text!r}: GPUs are counted, in whole hosts of {chip.host}: {_example(chip)}")
        return Target(chip, (max(1, count // chip.host), min(count, chip.host)))
    if not shape:
        usual = [s for s in (tuple(map(int, text.split("x"))) for text in chip.shapes) if math.prod(s) == count]
        if not usual:
            raise ConfigError(f"--topology {name} with {count} chips: name the shape, e.g. {_example(chip)}")
        return Target(chip, usual[0])
    if len(shape) != chip.dimensions:
        raise ConfigError(
            f"--topology {text!r}: a {name} slice has {chip.dimensions} dimensions, e.g. {_example(chip)}"
        )
    return Target(chip, shape)


def _example(chip: Chip) -> str:
    return f"{chip.name}:64" if chip.platform == "gpu" else f"{chip.name}:{chip.shapes[-1]}"
