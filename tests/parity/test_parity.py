"""The dense model against transformers in float32: visual tokens, positions, hidden states, embeddings, gradients.

The oracle computes one document at a time; ours are packed together into shared rows and slots, so every comparison
also says that neighbours and padding have no influence.
"""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import oracle  # noqa: E402
import ours  # noqa: E402

from moon_jax.hf.config import read_config  # noqa: E402
from moon_jax.hf.load import load_params  # noqa: E402
from moon_jax.hf.names import table  # noqa: E402

pytestmark = pytest.mark.torch

TOLERANCE = 2e-4  # max |difference| / rms, float32


@dataclasses.dataclass(frozen=True)
class Sizes:
    """One model: text heads x head_dim wide, vision heads x vision_head wide."""

    heads: int = 4
    kv: int = 2
    head_dim: int = 8
    ffn: int = 40
    layers: int = 2
    section: tuple[int, int, int] = (2, 1, 1)
    theta: float = 1e6
    eps: float = 1e-6
    depth: int = 3
    full: tuple[int, ...] = (1,)
    vision_heads: int = 2
    vision_head: int = 16
    mlp: int = 36
    patch: int = 14
    merge: int = 2
    frames: int = 2
    window: int = 112
    pixel_scale: float = 1.0  # of the patch embedding; small ones make the vision norms feel their epsilon

    @property
    def text_config(self):
        rope = {"rope_type": "default", "rope_theta": self.theta, "mrope_section": list(self.section)}
        return {
            "hidden_size": self.heads * self.head_dim, "intermediate_size": self.ffn, "rope_parameters": rope,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv,
            "rms_norm_eps": self.eps,
        }  # fmt: skip

    @property
    def vision_config(self):
        return {
            "depth": self.depth, "hidden_size": self.vision_heads * self.vision_head, "num_heads": self.vision_heads,
            "intermediate_size": self.mlp, "patch_size": self.patch, "spatial_merge_size": self.merge,
            "temporal_patch_size": self.frames, "window_size": self.window, "fullatt_block_indexes": list(self.full),
        }  # fmt: skip

    def documents(self):
        """Parts of documents; sizes of pictures in merged tokens, some odd in pixels."""
        f = self.patch * self.merge
        return [
            (3, (4 * f, 5 * f), 6),  # one picture with ragged windows
            (1, (f, 11 * f), 2, (5 * f - 3, 3 * f + 2), 5),  # two: one row wide, one that is resized
            (9,),  # text only
            ((f, f), 1),  # a picture of one token, at the start
            (2, (9 * f, 2 * f)),  # tall, at the end
        ]


CASES = {
    "periodic full attention": Sizes(depth=4, full=(1, 3)),
    "no full attention, no grouping": Sizes(kv=4, full=(), window=56, section=(1, 1, 2), vision_heads=3, vision_head=8),
    "all full, one kv head": Sizes(heads=6, kv=1, full=(0, 1, 2), theta=1e4, ffn=30),
    "full everywhere but last": Sizes(heads=3, kv=3, head_dim=16, section=(4, 2, 2), full=(0, 1), layers=3),
    "irregular, window floored": Sizes(depth=5, full=(0, 3), window=100, eps=1e-3, mlp=50, heads=8, pixel_scale=1e-3),
    "patch 6, windows of 5": Sizes(patch=6, window=64, vision_heads=4, vision_head=12, head_dim=12, section=(1, 2, 3)),
    "windows of one token": Sizes(window=28, theta=500.0, heads=5, kv=1, head_dim=4, section=(0, 1, 1), depth=2),
    "merge 3, three frames": Sizes(merge=3, patch=4, frames=3, window=30, depth=2, full=(0,), layers=1),
    "one frame, beyond the depth": Sizes(frames=1, depth=2, full=(1, 7), window=84, section=(0, 4, 0), eps=1e-5),
}


def close(got, want, what):
    assert got.shape == want.shape, what
    error = np.abs(got - want).max(initial=0) / np.sqrt(np.mean(want**2)) if want.size else 0.0
    assert error <= TOLERANCE, f"{what}: {error:.1e}"


def make(sizes, seed=0):
    model = oracle.make_model(sizes.text_config, sizes.vision_config, seed)
    with torch.no_grad():
        model.model.visual.patch_embed.proj.weight *= sizes.pixel_scale
    return model


def load(model, folder, layout="hub"):
    """(our params, our config) by way of a checkpoint folder, and the oracle that reads the same folder."""
    oracle.save(model, folder, layout)
    config, _ = read_config(folder)
    return load_params(folder, config), config, oracle.load(folder)


def compare(params, config, expected):
    batch = ours.pack_together([ours.encode(e, config.vision) for e in expected], config.vision)
    out = ours.run(params, config, batch, len(expected) + 1)
    for i, document in enumerate(expected):
        rows, columns = ours.tokens_of(batch, i)
        np.testing.assert_array_equal(batch["tokens"][rows, columns], document.ids)
        np.testing.assert_array_equal(batch["positions"][:, rows, columns], document.positions)
        slots = batch["image_slots"][rows, columns]
        np.testing.assert_array_equal(slots >= 0, document.ids == oracle.IMAGE_PAD)
        close(out["visual"][slots[slots >= 0]], document.visual, f"visual tokens of document {i}")
        close(out["hidden"][rows, columns], document.hidden, f"hidden states of document {i}")
        close(out["embeddings"][i], document.embedding, f"embedding of document {i}")
    assert not out["embeddings"][len(expected)].any()  # the place that no document takes


@pytest.mark.parametrize("name", CASES)
def test_packed_documents_equal_transformers(tmp_path, name):
    sizes = CASES[name]
    layout = ("hub", "fresh", "v5", "base")[list(CASES).index(name) % 4]
    params, config, reference = load(make(sizes, seed=len(name)), tmp_path, layout)
    expected = [oracle.expect(reference, parts, seed=i) for i, parts in enumerate(sizes.documents())]
    assert len({e.ids.tobytes() for e in expected}) == len(expected)
    compare(params, config, expected)


def test_a_long_document(tmp_path):
    """Beyond 2,000 positions, with a picture at the far end: rotary angles keep their precision."""
    sizes = Sizes()
    params, config, reference = load(make(sizes), tmp_path)
    expected = [oracle.expect(reference, (2040, (56, 84), 30), 0), oracle.expect(reference, (40, (28, 28)), 1)]
    assert expected[0].positions.max() > 2050
    compare(params, config, expected)


def test_real_widths(tmp_path):
    """One text layer and one vision block of the 3B model (width 2048, ffn 11008; 1280, 3420)."""
    sizes = Sizes(
        heads=16, kv=2, head_dim=128, ffn=11008, layers=1, section=(16, 24, 24), depth=1, full=(), vision_heads=16,
        vision_head=80, mlp=3420,
    )  # fmt: skip
    params, config, reference = load(make(sizes), tmp_path)
    documents = [(4, (140, 168), 7), (20,), (1, (28, 84), 2)]
    compare(params, config, [oracle.expect(reference, parts, i) for i, parts in enumerate(documents)])


def test_bfloat16_points_the_same_way(tmp_path):
    """Our bfloat16 forward against transformers' float32: the cosine of every pooled embedding."""
    sizes = CASES["periodic full attention"]
    params, config, reference = load(make(sizes), tmp_path)
    expected = [oracle.expect(reference, parts, i) for i, parts in enumerate(sizes.documents())]
    batch = ours.pack_together([ours.encode(e, config.vision) for e in expected], config.vision)
    out = ours.run(params, dataclasses.replace(config, dtype="bfloat16"), batch, len(expected))
    cosines = [float(a @ e.embedding) for a, e in zip(out["embeddings"], expected, strict=True)]
    assert min(cosines) >= 0.9995, cosines
    assert np.abs(out["embeddings"] - np.stack([e.embedding for e in expected])).max() > 1e-4  # not float32 in disguise


def test_every_gradient_equals_autograd(tmp_path):
    """d/d(parameter) of a random projection of the embeddings, for every parameter of the tree."""
    sizes = Sizes(depth=3, full=(1,), window=84)
    params, config, reference = load(make(sizes), tmp_path)
    expected = [oracle.expect(reference, parts, i) for i, parts in enumerate(sizes.documents())]
    weights = np.random.default_rng(0).normal(size=(len(expected), config.text.hidden_size)).astype(np.float32)

    for document, weight in zip(expected, weights, strict=True):
        _, _, hidden = oracle.forward(reference, document.ids, document.pixels, document.grids)
        (oracle.pool(hidden) @ torch.from_numpy(weight)).backward()
    theirs = {name: p.grad for name, p in reference.named_parameters()}

    batch = ours.pack_together([ours.encode(e, config.vision) for e in expected], config.vision)
    forward = ours.forward(config, len(expected))
    loss = lambda params, batch: (forward(params, batch)[2] * weights).sum()  # noqa: E731
    got = jax.jit(jax.grad(loss))(ours.place_params(params, config), ours.place(batch))

    for row in table(config):
        leaf = got
        for name in row.path:
            leaf = leaf[name]
        layers = [row.to_ours(theirs[name].numpy()) for name in row.hf_names("v5")]
        want = np.stack(layers) if row.layers else layers[0]
        assert np.abs(want).max() > 0, row.path
        close(np.asarray(leaf), want, "gradient of " + ".".join(row.path))
