"""Every attention implementation against numpy from the formula, values and gradients; and what may run where."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_batch import fake_batch, tiny_config
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import ONE, QUICK, Step, assert_close, mesh_of, step_on

from moon_jax.config import ConfigError, ModelConfig, TextConfig, VisionConfig
from moon_jax.models import attention as door
from moon_jax.models.attention import IMPLEMENTATIONS, attention, check_attention
from moon_jax.models.attention_cudnn import cudnn
from moon_jax.models.attention_splash import block_of, splash
from moon_jax.models.attention_triton import triton
from moon_jax.parallel.mesh import AXES

HERE = {
    "xla": IMPLEMENTATIONS["xla"].attend,
    "splash": functools.partial(splash, interpret=True),
    "triton": functools.partial(triton, interpret=True),
    "cudnn": functools.partial(cudnn, implementation="xla"),
}
"""The implementations in a form that computes on a CPU."""


class Case(NamedTuple):
    kv: int
    group: int
    head_dim: int
    segments: tuple[tuple[int, ...], ...]  # per row: (segment, tokens, segment, tokens, ...)

    @property
    def ids(self) -> np.ndarray:
        return np.stack([np.repeat(row[::2], row[1::2]) for row in self.segments]).astype(np.int32)


CASES = {
    # a length that no block divides; padding at the end, in the middle, and a row of nothing else
    "grouped, 150 tokens": Case(2, 3, 16, ((1, 60, 2, 41, 0, 49), (3, 30, 0, 20, 1, 100), (0, 150))),
    # as many heads as kv heads, as in the vision tower; segments that go on over the edge of a block
    "plain, 200 tokens, heads of 80": Case(2, 1, 80, ((1, 10, 2, 150, 3, 40), (1, 1, 0, 199))),
}


def draw(case: Case, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Returns q, k, v and the gradient of the output, which is zero at padding."""
    r = np.random.default_rng(seed)
    b, s = case.ids.shape
    q, dy = (r.normal(size=(b, s, case.kv, case.group, case.head_dim)).astype(np.float32) for _ in range(2))
    k, v = (r.normal(size=(b, s, case.kv, case.head_dim)).astype(np.float32) for _ in range(2))
    return q, k, v, dy * (case.ids > 0)[:, :, None, None, None]


@functools.cache
def by_hand(case: Case, causal: bool) -> tuple[np.ndarray, ...]:
    """Returns y and the gradients of q, k, v in float64, a segment and a head at a time."""
    q, k, v, dy = (x.astype(np.float64) for x in draw(case))
    y, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    scale = case.head_dim**-0.5
    for row, ids in enumerate(case.ids):
        for segment in set(ids.tolist()) - {0}:
            at = np.flatnonzero(ids == segment)
            hidden = np.where(causal & (at[:, None] < at[None]), -np.inf, 0.0)
            for head in range(case.kv):
                for member in range(case.group):
                    these, keys, values = q[row, at, head, member], k[row, at, head], v[row, at, head]
                    scores = these @ keys.T * scale + hidden
                    weights = np.exp(scores - scores.max(1, keepdims=True))
                    weights /= weights.sum(1, keepdims=True)
                    y[row, at, head, member] = weights @ values
                    gradient = dy[row, at, head, member]
                    dv[row, at, head] += weights.T @ gradient
                    dw = gradient @ values.T
                    ds = weights * (dw - (dw * weights).sum(1, keepdims=True)) * scale
                    dq[row, at, head, member] = ds @ keys
                    dk[row, at, head] += ds.T @ these
    return y, dq, dk, dv


@functools.cache
def compiled(impl: str, causal: bool):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(q, k, v, ids, dy):
        y, pullback = jax.vjp(lambda q, k, v: HERE[impl](q, k, v, ids, causal), q, k, v)
        return y, *pullback(dy)

    return run


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("impl", HERE)
def test_values_and_gradients(impl, causal, case):
    """Against the formula; nothing is NaN where a row, or a part of it, is padding."""
    q, k, v, dy = draw(case)
    y, *gradients = compiled(impl, causal)(q, k, v, case.ids, dy)
    assert np.isfinite(y).all()
    y = np.asarray(y) * (case.ids > 0)[:, :, None, None, None]
    for name, got, want in zip(("y", "dq", "dk", "dv"), (y, *gradients), by_hand(case, causal), strict=True):
        rms = np.sqrt(np.mean(want[case.ids > 0] ** 2))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * rms, err_msg=name)


@pytest.mark.parametrize("impl", HERE)
def test_padding_is_not_seen(impl):
    """Whatever stands at padding, values and gradients of the tokens are the same, to the bit, and finite."""
    case = CASES["grouped, 150 tokens"]
    q, k, v, dy = draw(case)
    clean = compiled(impl, True)(q, k, v, case.ids, dy)
    padding = case.ids == 0
    for x in (q, k, v):
        x[padding] = 1e4
    dirty = compiled(impl, True)(q, k, v, case.ids, dy)
    for got, want in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(np.asarray(got)[~padding], np.asarray(want)[~padding])
        assert np.isfinite(got).all()


def twice(attend, q, k, v, ids):
    """Returns what a scan with remat over two layers finds, the second with the output of the first as queries."""

    def body(q, _):
        return attend(q, k, v, ids, True), None

    return jax.lax.scan(jax.checkpoint(body), q, None, length=2)[0]


def sum_of_squares(y, ids):
    return jnp.sum(y**2, where=(ids > 0)[:, :, None, None, None])


SPLITS = {
    # kv heads, group, and the axes of queries and of keys
    "kv heads": (2, 3, P("data", None, "tensor"), P("data", None, "tensor")),
    "groups of one kv head": (1, 4, P("data", None, None, "tensor"), P("data")),
}


@functools.cache
def on_one_device(kv: int, group: int):
    """Returns the inputs, and the sum and its gradients as plain XLA attention gives them without a mesh."""
    case = Case(kv, group, 8, ((1, 20, 2, 9, 0, 3), (1, 32)))
    q, k, v, _ = draw(case)
    ids = jnp.asarray(case.ids)
    step = jax.value_and_grad(lambda *qkv: sum_of_squares(twice(HERE["xla"], *qkv, ids), ids), argnums=(0, 1, 2))
    return (q, k, v, case.ids), jax.jit(step, compiler_options=QUICK)(q, k, v)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("impl", HERE)
def test_inside_the_shard_map(impl, split):
    """With check_vma on, values and gradients are those without a mesh; replicated keys add up their gradients."""
    kv, group, of_q, of_k = SPLITS[split]
    inputs, (want, want_gradients) = on_one_device(kv, group)

    def shard(q, k, v, ids):
        return jax.lax.psum(sum_of_squares(twice(HERE[impl], q, k, v, ids), ids), ("data", "tensor"))

    mesh, specs = mesh_of((2, 1, 1, 2)), (of_q, of_k, of_k, P("data"))
    step = jax.value_and_grad(jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=P()), argnums=(0, 1, 2))
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(inputs, specs, strict=True)]
    with jax.set_mesh(mesh):
        got, gradients = jax.jit(step, compiler_options=QUICK)(*placed)
    assert float(got) == pytest.approx(float(want), rel=3e-6)
    for name, gradient, expected in zip("qkv", gradients, want_gradients, strict=True):
        assert_close(gradient, expected, 1e-5, f"gradient of {name}")


def config_of_steps():
    return tiny_config(train__clip_norm=1e9, train__warmup_ratio=0.0)


def with_splash(config, remat: str):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention_impl="splash", remat=remat))


def batch_of_documents() -> dict[str, np.ndarray]:
    batch = fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=96)
    visual = batch["image_slots"]  # the last visual token of a slot of eight is made of padding, which means nothing
    return batch | {"image_slots": np.where(visual % 8 == 7, visual - 1, visual)}


def test_the_train_step_lowers_with_splash():
    """Text rows and whole pictures go through the kernel, windows of patches do not."""
    step = Step(with_splash(config_of_steps(), "layer"), (1, 2, 2, 2))
    with jax.set_mesh(step.mesh):
        function = step.trainer.train_step(3 * step.config.train.batch_size // step.shards)
        traced = function.trace(step.state(), step.place(batch_of_documents()))
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    in_one_scan = 4  # forward, the same again in the backward pass, queries, keys and values
    assert text.count("@tpu_custom_call") == 2 * in_one_scan


@pytest.mark.slow
def test_the_train_step_with_splash(monkeypatch):
    """The whole model with its heads on two devices: loss and gradients of one device with xla."""
    here = IMPLEMENTATIONS["splash"]._replace(attend=HERE["splash"])
    monkeypatch.setitem(door.IMPLEMENTATIONS, "splash", here)
    want = step_on(config_of_steps(), ONE).run(batch_of_documents())[0]
    got = step_on(with_splash(config_of_steps(), "none"), (1, 1, 1, 2)).run(batch_of_documents())[0]
    assert got.loss == pytest.approx(want.loss, rel=3e-6)
    for name, value in want.gradients.items():
        assert_close(got.gradients[name], value, 1e-4, name)


CPUS = mesh_of((2, 1, 1, 2))  # the platform is named when the program is lowered; Triton also asks for the chip
H100 = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
GPUS = AbstractMesh((2, 1, 1, 2), AXES, (AxisType.Explicit,) * 4, abstract_device=H100)
KERNELS = {
    # platform to compile for, devices, what a kernel is in the program, how many a value and its gradient take
    "splash": ("tpu", CPUS, "tpu_custom_call", 3),
    "triton": ("cuda", GPUS, "__gpu$xla.gpu.triton", 3),
    "cudnn": ("cuda", CPUS, "__cudnn$fmha", 2),
}


@pytest.mark.parametrize("head_dim", [80, 128])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("impl", KERNELS)
def test_lowers_for_its_platform(impl, causal, head_dim, monkeypatch):
    """From the door, inside a shard_map with check_vma, to the kernels of the platform, forward and backward."""
    # jax asks for the cuDNN library while it traces, long before it would be called
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    platform, mesh, kernel, count = KERNELS[impl]

    def loss(q, k, v, ids):
        y = attention(q, k, v, ids, causal=causal, impl=impl)
        return jax.lax.psum(jnp.sum(y.astype(jnp.float32)), ("data", "tensor"))

    specs = (P("data", None, "tensor"),) * 3 + (P("data"),)
    shapes = [(2, 1000, 4, 2, head_dim), (2, 1000, 4, head_dim), (2, 1000, 4, head_dim), (2, 1000)]
    dtypes = [jnp.bfloat16] * 3 + [jnp.int32]
    inputs = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in zip(shapes, dtypes, specs, strict=True)
    ]
    step = jax.value_and_grad(jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P()), argnums=(0, 1, 2))
    with jax.set_mesh(mesh) if mesh is CPUS else jax.sharding.use_abstract_mesh(mesh):
        text = jax.jit(step).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()
    assert text.count(f"@{kernel}") == count


def test_without_cudnn_nothing_else_runs(monkeypatch):
    """A machine that has no cuDNN, such as one that compiles ahead of time, is told so."""

    def missing():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", missing)
    q, k = jnp.zeros((1, 64, 1, 1, 16), jnp.bfloat16), jnp.zeros((1, 64, 1, 16), jnp.bfloat16)
    with pytest.raises(ConfigError, match=r"cuDNN is not detected.*'triton' can be compiled"):
        attention(q, k, k, jnp.ones((1, 64), jnp.int32), causal=True, impl="cudnn")


def test_blocks_of_splash():
    """The largest block that makes a row at most an eighth longer."""
    assert {n: block_of(n) for n in (1, 128, 129, 256, 500, 576, 640, 1024, 4000, 4096)} == {
        1: 128, 128: 128, 129: 128, 256: 256, 500: 512, 576: 128, 640: 128, 1024: 512, 4000: 512, 4096: 512,
    }  # fmt: skip


def model_of(impl: str, dtype: str = "bfloat16", head_dim: int = 128, vision: int = 80) -> ModelConfig:
    sizes = VisionConfig(hidden_size=16 * vision)
    return ModelConfig(attention_impl=impl, dtype=dtype, text=TextConfig(head_dim=head_dim), vision=sizes)


@pytest.mark.parametrize(
    ("impl", "platform"), [("xla", "cpu"), ("xla", "gpu"), ("xla", "tpu"), ("splash", "tpu"), ("triton", "gpu")]
)
def test_runs_there(impl, platform):
    check_attention(model_of(impl), platform)


@pytest.mark.parametrize(
    ("config", "platform", "message"),
    [
        (model_of("splash"), "cpu", r"attention_impl = 'splash' runs on tpu, not on cpu, where there is xla$"),
        (model_of("splash"), "gpu", r"runs on tpu, not on gpu, where there is xla, triton, cudnn$"),
        (model_of("triton"), "tpu", r"runs on gpu, not on tpu, where there is xla, splash$"),
        (model_of("cudnn"), "cpu", r"runs on gpu, not on cpu, where there is xla$"),
        (model_of("cudnn", dtype="float32"), "gpu", r"'cudnn' computes in bfloat16: set config.model.dtype"),
        (model_of("triton", dtype="float32"), "gpu", r"'triton' computes in bfloat16: set config.model.dtype"),
        (
            model_of("triton", head_dim=24),
            "gpu",
            r"multiple of 16 and at most 128, and that of config.model.text is 24",
        ),
        (
            model_of("triton", vision=24),
            "gpu",
            r"multiple of 16 and at most 128, and that of config.model.vision is 24",
        ),
        (
            model_of("cudnn", head_dim=256),
            "gpu",
            r"multiple of 8 and at most 128, and that of config.model.text is 256",
        ),
        (model_of("flash"), "cpu", r"attention_impl 'flash' does not exist; there are xla, splash, triton, cudnn$"),
    ],
)
def test_says_what_can_run(config, platform, message):
    with pytest.raises(ConfigError, match=message):
        check_attention(config, platform)
