"""Where every parameter of the 3B recipe lies, on four meshes, as a text that a person can check.

    python tests/parallel/test_golden_specs.py

writes golden/moon_3b.txt anew, after a change of the table in moon_jax/parallel/mesh.py that is meant.
"""

import dataclasses
import importlib.util
import math
import pathlib

import jax
from jax.sharding import AbstractMesh

from moon_jax.config import resolve
from moon_jax.models import moon
from moon_jax.parallel.mesh import AXES, check_divisible, replicated_dimensions

GOLDEN = pathlib.Path(__file__).parent / "golden" / "moon_3b.txt"
RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "moon_3b.py"
PLACES = (((1, 16, 4, 1), "spread"), ((2, 8, 4, 2), "spread"), ((1, 8, 4, 8), "spread"), ((1, 8, 4, 8), "split"))
HEAD = """\
Parameters of configs/moon_3b.py. A dimension is written as SIZE, or SIZE/AXES where it is sharded over mesh axes;
"of" is the part of one device. Made by tests/parallel/test_golden_specs.py.
"""


def recipe():
    spec = importlib.util.spec_from_file_location("moon_3b", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return resolve(module.get_config())


def section(config, shape, placement):
    """Returns the lines of one mesh."""
    mesh = AbstractMesh(shape, AXES)
    moe = dataclasses.replace(config.moe, placement=placement)
    _, shapes, specs = moon.abstract(config.model, moe, mesh)
    check_divisible(shapes, specs, mesh)
    rows, whole, held = [], 0, 0
    flat = jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    for (path, spec), leaf in zip(flat, jax.tree.leaves(shapes), strict=True):
        entries = [entry if isinstance(entry, tuple) else (entry,) if entry else () for entry in spec]
        ways = [math.prod(mesh.shape[axis] for axis in entry) for entry in entries]
        local = [size // way for size, way in zip(leaf.shape, ways, strict=True)]
        named = [f"{s}/{'+'.join(e)}" if e else str(s) for s, e in zip(leaf.shape, entries, strict=True)]
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        rows.append((name, " ".join(named), " ".join(map(str, local))))
        whole, held = whole + math.prod(leaf.shape), held + math.prod(local)
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    title = " x ".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
    lines = [f"{title}, placement {placement}: a device has {held:,} of {whole:,} numbers"]
    lines += [f"  {name:<{widths[0]}}  {dims:<{widths[1]}}  of {local}" for name, dims, local in rows]
    lines += [f"  ! {line}" for line in replicated_dimensions(shapes, moon.logical_axes(config.model, moe), mesh)]
    return lines


def text():
    config = recipe()
    return "\n\n".join([HEAD.strip(), *("\n".join(section(config, *place)) for place in PLACES)]) + "\n"


def test_every_parameter_of_the_recipe_lies_where_it_did():
    assert text() == GOLDEN.read_text(), f"if this is meant: python tests/parallel/{pathlib.Path(__file__).name}"


def test_the_moon_3b_file_says_what_is_known_by_hand():
    """2 kv heads of 8 queries, 16 vision heads, FFNs of 11008 and 3420, a vocabulary of 151936 = 2^7 * 1187."""
    sections = {part.splitlines()[0].split(":")[0]: part for part in GOLDEN.read_text().split("\n\n")[1:]}
    rows = lambda place: {row.split()[0]: " ".join(row.split()[1:]) for row in sections[place].splitlines()[1:]}  # noqa: E731
    eight = rows("data=1 x fsdp=8 x expert=4 x tensor=8, placement spread")
    assert eight["text.layers.q"] == "36 2048/fsdp 2 8/tensor 128 of 36 256 2 1 128"
    assert eight["text.layers.k"] == "36 2048/fsdp 2 128 of 36 256 2 128"
    assert eight["text.layers.moe.gate"] == "36 8/expert 2048/fsdp 11008/tensor of 36 2 256 1376"
    assert eight["vision.blocks.gate"] == "32 1280/fsdp 3420 of 32 160 3420"
    assert eight["vision.blocks.qkv"] == "32 1280/fsdp 3 16/tensor 80 of 32 160 3 2 80"
    assert eight["text.embed"] == "151936/tensor 2048/fsdp of 18992 256"
    two = rows("data=2 x fsdp=8 x expert=4 x tensor=2, placement spread")
    assert two["text.layers.k"] == "36 2048/fsdp 2/tensor 128 of 36 256 1 128"
    assert two["vision.blocks.gate"] == "32 1280/fsdp 3420/tensor of 32 160 1710"
    split = rows("data=1 x fsdp=8 x expert=4 x tensor=8, placement split")
    assert split["text.layers.moe.down"] == "36 8 11008/expert+tensor 2048/fsdp of 36 8 344 256"
    assert {name for name in eight if eight[name] != split.get(name)} == {
        f"text.layers.moe.{name}" for name in ("gate", "up", "down")
    }
    assert "!" not in two
    assert eight["!"].startswith(("text.layers: kv = 2 does not", "vision.blocks: ffn = 3420 does not"))


if __name__ == "__main__":
    GOLDEN.write_text(text())
