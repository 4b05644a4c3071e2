"""Meshes of 1 to 8 CPU devices, and train steps on them, each compiled once per test session."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from fake_batch import regroup
from jax.sharding import Mesh

from moon_jax.config import Config, MeshConfig
from moon_jax.contrastive import ring as rings
from moon_jax.parallel.mesh import batch_shards, make_mesh, place_batch, shardings
from moon_jax.training.state import Trainer, TrainState

Shape = tuple[int, int, int, int]  # data, fsdp, expert, tensor

QUICK = {"xla_backend_optimization_level": 0}  # compiler options: the same program, less time spent on machine code

ONE: Shape = (1, 1, 1, 1)
EIGHT: tuple[Shape, ...] = ((8, 1, 1, 1), (2, 2, 2, 1), (1, 2, 4, 1), (1, 2, 2, 2))


def mesh_of(shape: Shape) -> Mesh:
    return make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])


def name_of(shape: Shape) -> str:
    return "x".join(map(str, shape))


def assert_close(actual: Any, expected: Any, relative: float, what: str = "") -> None:
    """Compares with a tolerance relative to the rms of what is expected: small entries carry large ones' noise."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, what
    rms = np.sqrt(np.mean(expected**2)) if expected.size else 0.0
    worst = np.abs(actual - expected).max(initial=0.0)
    assert worst <= relative * rms, f"{what}: off by {worst:.2e} where the rms is {rms:.2e}"


def leaves(tree: Any) -> dict[str, Any]:
    """Returns {"text.layers.q": leaf, ...}."""
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def draw(shapes: Any, seed: int = 0) -> Any:
    """Returns numpy parameters of these shapes with nothing at a special value: no bias is 0, no norm is 1."""
    r = np.random.default_rng(seed)

    def leaf(path, shape):
        name = path[-1].key
        noise = r.normal(size=shape.shape)
        value = 1 + 0.1 * noise if "norm" in name else {"router": 0.5}.get(name, 0.15) * noise
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


class Result(NamedTuple):
    """What one step returned, as numpy."""

    loss: float
    metrics: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    params: dict[str, np.ndarray]  # after the update
    ring: rings.Ring | None  # after the push


class Step:
    """The train step of one config on one mesh, run on batches of 8 shards that are regrouped to the mesh's."""

    def __init__(self, config: Config, shape: Shape):
        assert config.train.clip_norm >= 1e9, "gradients are read from Adam's first moment: they must not be clipped"
        self.config, self.mesh = config, mesh_of(shape)
        self.trainer = Trainer(config, self.mesh)
        self.shards = batch_shards(self.mesh)
        self.compiled = None

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return place_batch(regroup(batch, self.shards), self.mesh)

    def state(self, params: Any = None) -> TrainState:
        config = self.config
        params = draw(self.trainer.shapes) if params is None else params
        ring = None
        if config.loss.ring_batches:
            ring = rings.empty(config.loss.ring_batches, config.train.batch_size, config.model.text.hidden_size)
        state = TrainState(np.int32(0), params, self.trainer.optimizer.init(params), ring)
        # one by one copies: a donated buffer must not be shared with another leaf
        return jax.tree.map(
            lambda x, s: jax.device_put(np.array(x), s), state, shardings(self.trainer.state_specs, self.mesh)
        )

    def compile(self, state: TrainState, batch: Mapping[str, jax.Array]) -> Any:
        if self.compiled is None:
            step = self.trainer.train_step(3 * self.config.train.batch_size // self.shards)
            self.compiled = step.lower(state, batch).compile(compiler_options=QUICK)
        return self.compiled

    def run(self, batch: Mapping[str, np.ndarray], steps: int = 1, params: Any = None) -> list[Result]:
        """Returns the results of consecutive steps on one batch, from drawn (or the given) parameters."""
        results = []
        with jax.set_mesh(self.mesh):
            state, placed = self.state(params), self.place(batch)
            compiled = self.compile(state, placed)
            moment = self.config.train.b1
            last = {name: 0.0 for name in leaves(self.trainer.shapes)}
            for _ in range(steps):
                state, metrics = compiled(state, placed)
                host = jax.tree.map(np.asarray, (metrics, optax.tree_utils.tree_get(state.opt_state, "mu"), state))
                metrics, mu, after = host
                gradients = {name: (m - moment * last[name]) / (1 - moment) for name, m in leaves(mu).items()}
                last = leaves(mu)
                results.append(Result(float(metrics["loss"]), metrics, gradients, leaves(after.params), after.ring))
        return results


@functools.cache
def step_on(config: Config, shape: Shape) -> Step:
    """Returns the one `Step` of the test session for this config and mesh."""
    return Step(config, shape)
