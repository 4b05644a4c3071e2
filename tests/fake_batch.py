"""A random packed batch with every field of the contract, made without data/: for tests of model, loss and sharding."""

import numpy as np

from moon_jax.config import Role


def fake_batch(
    shards: int,
    triplets: int,
    *,
    rows: int,
    row_tokens: int,
    patch_dim: int,
    vocab: int,
    seed: int = 0,
    chunk: int = 16,
) -> dict[str, np.ndarray]:
    """Documents of one segment each, 3 * triplets per shard; about a third of their tokens are visual."""
    r = np.random.default_rng(seed)
    documents = 3 * triplets
    per_row = -(-documents // rows)
    length = row_tokens // per_row
    slots, patches = 2 * triplets, 2 * chunk
    visual = slots * patches // 4
    batch = {name: [] for name in FIELDS}
    for g in range(shards):
        segment = np.zeros((rows, row_tokens), np.int32)
        document = np.full((rows, per_row + 1), -1, np.int32)
        image_slots = np.full((rows, row_tokens), -1, np.int32)
        for d in range(documents):
            row, place = divmod(d, per_row)
            real = r.integers(length // 2, length + 1)
            segment[row, place * length : place * length + real] = place + 1
            document[row, place + 1] = d
        flat = np.flatnonzero(segment.reshape(-1))
        chosen = r.choice(flat, min(visual, len(flat) // 3), replace=False)
        image_slots.reshape(-1)[chosen] = r.permutation(visual)[: len(chosen)]
        roles = np.where(segment > 0, r.integers(Role.TITLE, Role.ATTRIBUTE + 1, segment.shape), Role.PADDING)
        roles = np.where(image_slots >= 0, Role.IMAGE, roles).astype(np.int32)
        index = r.permutation(documents).reshape(3, triplets).astype(np.int32)
        picture = np.repeat(r.integers(1, 3, (slots, patches // 4)), 4, axis=1).astype(np.int32)
        picture[:, -4:] = 0
        batch["tokens"].append(np.where(segment > 0, r.integers(0, vocab, segment.shape), 0).astype(np.int32))
        batch["segment_ids"].append(segment)
        batch["positions"].append(r.integers(0, row_tokens, (3, rows, row_tokens)).astype(np.int32))
        batch["roles"].append(roles)
        batch["image_slots"].append(image_slots)
        batch["document_of_segment"].append(document)
        batch["patches"].append(r.normal(size=(slots, patches, patch_dim)).astype(np.float32))
        batch["patch_picture"].append(picture)
        batch["patch_window"].append(np.tile(np.repeat(np.arange(patches // 8), 8), (slots, 1)).astype(np.int32))
        batch["patch_positions"].append(r.integers(0, 8, (slots, patches, 2)).astype(np.int32))
        for name, row in zip(("query", "positive", "negative"), index, strict=True):
            batch[name].append(row)
        products = np.arange(2 * triplets, dtype=np.int32).reshape(2, -1) + 2 * triplets * g
        batch["positive_product"].append(products[0])
        batch["negative_product"].append(products[1])
    return {name: np.stack(arrays) for name, arrays in batch.items()}


def regroup(batch: dict[str, np.ndarray], shards: int) -> dict[str, np.ndarray]:
    """The same documents on fewer shards: the rows, slots and indices of neighbouring shards are put together."""
    joined = len(batch["tokens"]) // shards
    documents = 3 * batch["query"].shape[1]
    visual = batch["patches"].shape[1] * batch["patches"].shape[2] // 4
    step = {"query": documents, "positive": documents, "negative": documents,
            "document_of_segment": documents, "image_slots": visual}  # fmt: skip
    out = {}
    for name, array in batch.items():
        array = array.reshape(shards, joined, *array.shape[1:])
        if name in step:
            offset = np.arange(joined).reshape(1, -1, *[1] * (array.ndim - 2)) * step[name]
            array = np.where(array >= 0, array + offset, array).astype(np.int32)
        if name == "positions":
            array = np.moveaxis(array, 2, 1)
            out[name] = np.ascontiguousarray(array.reshape(shards, 3, -1, array.shape[-1]))
        else:
            out[name] = array.reshape(shards, -1, *array.shape[3:])
    return out


FIELDS = (
    "tokens", "segment_ids", "positions", "roles", "image_slots", "document_of_segment",
    "patches", "patch_picture", "patch_window", "patch_positions",
    "query", "positive", "negative", "positive_product", "negative_product",
)  # fmt: skip


def tiny_config(**overrides):
    """The settings of a model small enough to compile in seconds, every dimension even."""
    from moon_jax import config as c

    d = c.defaults()
    with d.unlocked():
        d.model.vision.update(
            depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=4, window_size=16,
            fullatt_block_indexes=(1,),
        )  # fmt: skip
        d.model.text.update(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, mrope_section=(1, 1, 2),
        )  # fmt: skip
        d.train.update(batch_size=8, lr=1e-3, steps=20)
        for key, value in overrides.items():
            group = d
            *path, name = key.split("__")
            for part in path:
                group = group[part]
            group[name] = value
    return c.resolve(d)
