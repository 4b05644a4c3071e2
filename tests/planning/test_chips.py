"""Names of targets, and the links between the chips of one."""

import numpy as np
import pytest
from meshes import mesh_of

from moon_jax.config import ConfigError
from moon_jax.planning.chips import CHIPS, parse_target
from moon_jax.planning.network import Links, transfer_seconds


@pytest.mark.parametrize(
    ("text", "chips", "name", "count"),
    [
        ("v5p:4x4x16", 0, "v5p:4x4x16", 256),
        ("v5e:16x16", 0, "v5e:16x16", 256),
        ("v6e", 64, "v6e:8x8", 64),
        ("v5p", 256, "v5p:4x8x8", 256),
        ("h200:64", 0, "h200:64", 64),
        ("h100", 8, "h100:8", 8),
        ("h200:4", 4, "h200:4", 4),
    ],
)
def test_names_of_targets(text, chips, name, count):
    target = parse_target(text, chips)
    assert (target.name, target.count) == (name, count)
    assert parse_target(target.name) == target


def test_gpus_lie_in_hosts_of_eight():
    assert parse_target("h200:64").shape == (8, 8)
    assert parse_target("h200:2").shape == (1, 2)


@pytest.mark.parametrize(
    ("text", "chips", "message"),
    [
        ("v7:2x2", 0, "there is no chip 'v7'; there are v4, v5e"),
        ("v5p:4x4", 0, "has 3 dimensions, e.g. v5p:8x8x8"),
        ("v5p:4xx4", 0, "the size is written as"),
        ("v5p:4x4x4", 16, "has 64 chips, --chips asks for 16"),
        ("v5p", 0, "says no size"),
        ("v5p", 48, "name the shape"),
        ("h200:12", 0, "in whole hosts of 8"),
        ("h200:2x4", 0, "GPUs are counted"),
    ],
)
def test_mistakes_are_named(text, chips, message):
    with pytest.raises(ConfigError, match=message):
        parse_target(text, chips)


def torus(name: str) -> Links:
    """The links of a TPU target, with devices numbered along the torus; `_torus` is given the places of a group."""
    links = Links.__new__(Links)
    links.target = parse_target(name)
    return links


def places(*dimensions):
    return np.array(np.meshgrid(*dimensions)).reshape(len(dimensions), -1).T


@pytest.mark.parametrize(
    ("name", "group", "links"),
    [
        ("v5p:4x4x4", (range(4), [0], [0]), 2),  # a ring: both neighbours
        ("v5p:4x4x4", (range(4), range(4), [0]), 4),
        ("v5p:4x4x4", (range(2), [0], [0]), 1),  # half of a ring is a line
        ("v5p:4x4x4", ([0, 2], [0], [0]), 0.5),  # two groups lie interleaved on a ring and share its links
        ("v5e:16x16", (range(16), [3]), 2),
        ("v5e:8x8", (range(8), [3]), 1),  # only a full dimension of 16 closes
        ("v6e:8x8", (range(8), range(8)), 2),
    ],
)  # fmt: skip
def test_links_of_a_group_on_a_torus(name, group, links):
    target = torus(name)
    assert target._torus(places(*group)) == links * target.target.chip.link


def test_gpus_of_one_host_have_nvlink_and_hosts_share_their_network_cards():
    chip, links = CHIPS["h200"], torus("h200:16")
    host = np.zeros((8, 1), int)
    two = np.repeat([0, 1], 8)[:, None]
    assert links._hosts(chip, "all-gather", host) == 450e9
    assert links._hosts(chip, "all-gather", two) == 400e9  # eight cards carry what enters a host once
    assert links._hosts(chip, "all-gather", two[::8]) == 50e9
    assert links._hosts(chip, "all-to-all", two) == 100e9  # half of the bytes leave the host, each by its own card


def test_the_time_of_transfers_is_bytes_sent_over_the_bandwidth_of_their_axes():
    mesh = mesh_of((1, 2, 4, 1))
    links = Links(parse_target("h200:8"), mesh)  # one process: one host
    seconds = transfer_seconds(
        links,
        [("all-gather", ("expert",), 9e9), ("all-reduce", ("fsdp",), 9e9), ("all-gather", ("expert",), 3e9)],
        mesh.shape,
    )
    assert seconds == {
        ("all-gather", ("expert",)): pytest.approx(12e9 * 3 / 4 / 450e9),
        ("all-reduce", ("fsdp",)): pytest.approx(9e9 / 450e9),
    }
