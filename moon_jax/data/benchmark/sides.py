"""No query of the test set in training: products are divided by their hash, and queries follow."""

import ibis
import ibis.expr.types as ir

from moon_jax.data.benchmark.engine import Engine
from moon_jax.data.benchmark.functions import DRAW, DRAWN, NORMAL, REFERENCE


def keys(rows: ir.Table, *also: str) -> ir.Table:
    """Returns (key, *also) of every text and every picture of a query."""
    texts, images = (rows.select(*also, key=rows[name]).filter(ibis._.key != "") for name in ("text_key", "image_key"))
    return texts.union(images)


def on_one_side(rows: ir.Table, test_share: float, seed: int, engine: Engine) -> ir.Table:
    """Returns the rows with `leaks`, whether their query belongs to the other side than their product.

    A text or a picture that was used to buy products of both sides goes to one of them, to the test set with the
    probability `test_share`, by the md5 of (seed, key); its purchases on the other side leak. Where text and picture
    belong to different sides, the row leaks as well.
    """
    of = keys(rows, "test")
    per_key = of.group_by("key").agg(in_test=of.test.any(), in_train=(~of.test).any())
    both = per_key.filter(per_key.in_test & per_key.in_train)
    chosen = DRAW(ibis.literal(f"{seed}\nside\n") + both.key) < int(test_share * DRAWN)
    both = engine.stage(both.select("key", to_test=chosen), "crossing.parquet")
    of_text = both.select(text_key=both.key, text_to_test=both.to_test)
    of_image = both.select(image_key=both.key, image_to_test=both.to_test)
    joined = rows.left_join(of_text, "text_key").drop("text_key_right")
    joined = joined.left_join(of_image, "image_key").drop("image_key_right")
    text_leaks, image_leaks = (
        (to_test != joined.test).fill_null(False) for to_test in (joined.text_to_test, joined.image_to_test)
    )
    return joined.mutate(leaks=text_leaks | image_leaks).drop("text_to_test", "image_to_test")


def overlap(rows: ir.Table, pictures: str) -> int:
    """Returns how many texts and pictures of queries are in both sets, by what is written of them.

    Args:
        rows: with text, image and test.
        pictures: folder where relative paths of query pictures start.
    """
    written = rows.select(
        "test",
        text_key=(rows.text != "").ifelse(ibis.literal("text ") + NORMAL(rows.text), ""),
        image_key=(rows.image != "").ifelse(ibis.literal("image ") + REFERENCE(rows.image, ibis.literal(pictures)), ""),
    )
    of = keys(written, "test")
    both = of.filter(of.test).select("key").distinct().semi_join(of.filter(~of.test), "key")
    return int(both.count().to_pyarrow().as_py())
