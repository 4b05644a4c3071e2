"""How far ours is from transformers: every quantity of the parity table, for the tests and for benchmarks/parity.py."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import oracle
import ours
import torch
from cases import Sizes
from replay import Routes

from moon_jax.config import MoEConfig, Role
from moon_jax.data.prompts import EncodedPrompt
from moon_jax.models.moon import abstract_params

FLOAT32 = 2e-4  # max |difference| / rms
PIXELS = 2e-5
COSINE = 0.9995  # of pooled embeddings in bfloat16
NEW_TOKENS = 16
SIDES = ("left", "right")


@dataclasses.dataclass(frozen=True)
class Pair:
    """One checkpoint as both sides read it, and documents."""

    folder: pathlib.Path
    ours: ours.Ours
    reference: oracle.Model
    documents: tuple[oracle.Expected, ...]
    encoded: tuple[EncodedPrompt, ...]


def checkpoint(sizes: Sizes, folder: pathlib.Path, seed: int = 0, vocab: int = oracle.VOCAB, **root) -> oracle.Model:
    """A random model of these sizes, written to the folder and read again by transformers."""
    text = sizes.text_config | {"vocab_size": vocab}
    model = oracle.make_model(text, sizes.vision_config, seed, sizes.kind, tie_word_embeddings=sizes.tied, **root)
    with torch.no_grad():
        oracle.patch_kernel(model).mul_(sizes.pixel_scale)
    oracle.save(model, folder, sizes.layout)
    return oracle.load(folder)


def prepare(sizes: Sizes, folder: pathlib.Path, seed: int = 0, documents: Sequence | None = None) -> Pair:
    """A checkpoint of these sizes and what transformers makes of documents (default: `sizes.documents()`)."""
    reference = checkpoint(sizes, folder, seed)
    expected = [oracle.expect(reference, parts, i) for i, parts in enumerate(documents or sizes.documents())]
    assert len({e.ids.tobytes() for e in expected}) == len(expected)
    model = ours.load(folder)
    return Pair(folder, model, reference, tuple(expected), tuple(ours.encode(e, model.config.vision) for e in expected))


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Max |difference| over the rms of what is wanted."""
    assert got.shape == want.shape
    return float(np.abs(got - want).max(initial=0) / np.sqrt(np.mean(want**2))) if want.size else 0.0


def packed(pair: Pair) -> dict[str, float]:
    """Errors of documents that share rows and slots: neighbours and padding are present and must have no influence."""
    model, expected = pair.ours, pair.documents
    vision = model.config.vision
    batch = ours.pack_together(pair.encoded, vision)
    out = ours.run(model, batch, len(expected) + 1)
    assert not out["embeddings"][len(expected)].any()  # the place that no document takes
    worst = dict.fromkeys(("pixels", "positions", "vision", "hidden", "pooled", "logits"), 0.0)
    for i, document in enumerate(expected):
        rows, columns = ours.tokens_of(batch, i)
        assert np.array_equal(batch["tokens"][rows, columns], document.ids)
        slots = batch["image_slots"][rows, columns]
        assert np.array_equal(slots >= 0, document.ids == pair.reference.config.image_token_id)
        errors = {
            "pixels": ours.pixel_error(pair.encoded[i], document, vision),
            "positions": np.abs(batch["positions"][:, rows, columns] - document.positions).max(),
            "vision": relative(out["visual"][slots[slots >= 0]], document.visual),
            "hidden": relative(out["hidden"][rows, columns], document.hidden),
            "pooled": relative(out["embeddings"][i], document.embedding),
            "logits": relative(out["logits"][rows, columns], document.logits),
        }
        worst = {name: max(worst[name], float(error)) for name, error in errors.items()}
    return worst


def assert_equal(errors: dict[str, float]) -> None:
    """Holds the errors of `packed` and `padded` to the tolerances, all of them at once."""
    limits = {"pixels": PIXELS, "positions": 0.0}
    assert {name: f"{e:.1e}" for name, e in errors.items() if not e <= limits.get(name, FLOAT32)} == {}


def padded(pair: Pair) -> dict[str, float]:
    """Errors of the hidden states of batches with one document a row, padded on the left and on the right.

    Transformers pads the same documents on the same side.
    """
    errors = {}
    for side in SIDES:
        made, real = oracle.padded(pair.reference, pair.documents, side)
        with torch.no_grad():
            want = pair.reference.model(**made).last_hidden_state.numpy()[real]
        batch = {name: array[0] for name, array in ours.rows_of(pair.encoded, pair.ours.config.vision, side).items()}
        padding = batch["segment_ids"] == 0
        edge = padding[:, 0 if side == "left" else -1]
        assert padding.any()
        assert (edge | ~padding.any(1)).all()
        got = ours.run(pair.ours, batch, len(pair.documents))["hidden"][~padding]
        errors[f"hidden, padded {side}"] = relative(got, want)
    return errors


def wrong_tokens(pair: Pair, new: int = NEW_TOKENS) -> int:
    """How many greedy tokens differ from transformers' (each document by itself, and all in a batch)."""
    want = [oracle.continue_one(pair.reference, document, new) for document in pair.documents]
    assert oracle.continue_batch(pair.reference, pair.documents, new) == want
    assert len({token for tokens in want for token in tokens}) >= new // 2  # the model has something to say
    got = ours.generate(pair.ours, pair.encoded, new, sides=SIDES)
    return sum(int((np.array(g) != np.array(w)).sum()) for side in got for g, w in zip(side, want, strict=True))


def bfloat16_cosine(pair: Pair) -> float:
    """The smallest cosine between our pooled embeddings and torch's, both computed in bfloat16."""
    half = oracle.load(pair.folder, dtype=torch.bfloat16)
    config = dataclasses.replace(pair.ours.config, dtype="bfloat16")
    batch = ours.pack_together(pair.encoded, config.vision)
    got = ours.run(dataclasses.replace(pair.ours, config=config), batch, len(pair.documents))["embeddings"]
    wanted = np.stack([e.embedding for e in pair.documents])
    assert np.abs(got - wanted).max() > 1e-4  # not float32 in disguise
    cosines = []
    for mine, document in zip(got, pair.documents, strict=True):
        with torch.no_grad():
            theirs = oracle.forward(half, document.ids, document.pixels, document.grids)[2]
        assert theirs.dtype == torch.bfloat16
        cosines.append(float(mine @ oracle.pool(theirs.float()).numpy()))
    return min(cosines)


def moe_cosine(pair: Pair, moe: MoEConfig, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
    """(each document's cosine of bfloat16 to float32 with replayed routing, without, share of tokens that moved).

    The model has the pair's dense parts and drawn experts; the documents' texts take turns in all roles of a text.

    Args:
        pair: the dense model and its documents.
        moe: dropless.
        seed: of router and experts.
    """
    rng = np.random.default_rng(seed)
    shapes = abstract_params(pair.ours.config, moe)["text"]["layers"]["moe"]
    drawn = {n: rng.normal(size=s.shape) * (1.0 if n == "router" else s.shape[-2] ** -0.5) for n, s in shapes.items()}
    layers = {n: w for n, w in pair.ours.params["text"]["layers"].items() if n != "ffn"}
    layers["moe"] = {name: weight.astype(np.float32) for name, weight in drawn.items()}
    params = pair.ours.params | {"text": pair.ours.params["text"] | {"layers": layers}}
    full = dataclasses.replace(pair.ours, params=params)
    half = dataclasses.replace(full, config=dataclasses.replace(full.config, dtype="bfloat16"))

    batch = ours.pack_together(pair.encoded, full.config.vision)
    text = np.array([Role.TITLE, Role.CATEGORY, Role.ATTRIBUTE, Role.OTHER])[batch["positions"][0] % 4]
    batch["roles"] = np.where(batch["roles"] == Role.TITLE, text, batch["roles"]).astype(np.int32)
    run = lambda model: ours.run(model, batch, len(pair.documents), moe)["embeddings"]  # noqa: E731
    routes = Routes()
    with routes.record():
        want = run(full)
    with routes.replay():
        got = run(half)
    layers = full.config.text.num_hidden_layers
    passes = len(routes.recorded) // layers
    assert len(routes.recorded) == len(routes.unforced) == passes * layers
    moved = [(a != b).any(1) for a, b in zip(routes.recorded, routes.unforced, strict=True)]
    cosines = [(a * want).sum(1) for a in (got, run(half))]
    return *cosines, float(np.mean(moved))
