"""Hard negatives: another product of the same category, as deep as there is one, chosen by hash (paper 4.2)."""

import collections

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from moon_jax.data.benchmark.engine import Engine
from moon_jax.data.benchmark.functions import DRAW
from moon_jax.data.benchmark.listings import Listings
from moon_jax.data.benchmark.sides import keys

ATTEMPTS = 4  # at every level of the category, where the first choice was bought for the same query


def members(listings: Listings, engine: Engine) -> ir.Table:
    """Returns for every product its categories that hold another product, on its side of the split.

    Columns: product, depth (levels that all in the group share, 1 = the industry), group (a number), place (of the
    product in the group), size (of the group), deepest (whether it is the product's deepest group).
    """
    groups: dict[tuple, list[str]] = collections.defaultdict(list)
    for product in listings.products.values():
        side = listings.of_test(product.id)
        for depth in range(1, len(product.category) + 1):
            groups[(side, *product.category[:depth])].append(product.id)
    groups = {path: ids for path, ids in groups.items() if len(ids) > 1}
    deepest: dict[str, int] = {}
    for path, ids in groups.items():
        deepest.update((product, max(len(path) - 1, deepest.get(product, 0))) for product in ids)
    rows = (
        (product, len(path) - 1, number, place, len(ids), deepest[product] == len(path) - 1)
        for number, (path, ids) in enumerate(groups.items())
        for place, product in enumerate(ids)
    )
    kinds = {
        "product": pa.string(), "depth": pa.int64(), "group": pa.int64(), "place": pa.int64(), "size": pa.int64(),
        "deepest": pa.bool_(),
    }  # fmt: skip
    columns = list(zip(*rows, strict=True)) or [[]] * len(kinds)
    made = {name: pa.array(values, kind) for (name, kind), values in zip(kinds.items(), columns, strict=True)}
    return engine.put(pa.table(made), "members.parquet")


def with_negatives(rows: ir.Table, members: ir.Table, bought: ir.Table, seed: int, engine: Engine) -> ir.Table:
    """Returns the rows with `negative` and `depth`, the levels it shares with the product; null, 0 where there is none.

    The first choice is a product of the deepest category with another product in it, by the md5 of (seed, row). If
    somebody bought that one for the same text or picture, it may be a right answer: then a few more are tried, at
    every level from the deepest upwards.

    Args:
        rows: with id, text_key, image_key and product.
        members: of `members`.
        bought: (key, product) of every purchase in the log.
        seed: another seed, other negatives.
        engine: that runs it.
    """
    first = engine.stage(_choices(rows, members.filter(members.deepest), members, 1, seed), "first_choices.parquet")
    wrong = _answers(first, rows, bought)
    good = first.anti_join(wrong, "id")
    others = _choices(rows.semi_join(wrong, "id"), members, members, ATTEMPTS, seed)
    others = engine.stage(others, "other_choices.parquet")
    others = others.anti_join(_answers(others, rows, bought), ["id", "negative"])
    best = others.mutate(
        rank=ibis.row_number().over(group_by="id", order_by=[ibis.desc("depth"), "attempt", "negative"])
    )
    chosen = good.union(best.filter(best["rank"] == 0).drop("rank")).drop("attempt")
    joined = rows.left_join(chosen, "id").drop("id_right")
    return joined.mutate(depth=joined.depth.fill_null(0))


def _choices(rows: ir.Table, groups: ir.Table, members: ir.Table, attempts: int, seed: int) -> ir.Table:
    """Returns (id, negative, depth, attempt) of products that share one of `groups` with the row's product."""
    own = rows.select("id", "product").inner_join(groups, "product")
    own = ibis.union(*(own.mutate(attempt=ibis.literal(number, "int64")) for number in range(attempts)))
    lot = ibis.literal(f"{seed}\nnegative\n") + own.id + "\n" + own.attempt.cast("string")
    own = own.mutate(drawn=DRAW(lot) % (own["size"] - 1))
    own = own.select("id", "depth", "attempt", "group", place=own.drawn + (own.drawn >= own.place).cast("int64"))
    there = members.select("group", "place", negative=members["product"])
    return own.inner_join(there, ["group", "place"]).select("id", "negative", "depth", "attempt")


def _answers(choices: ir.Table, rows: ir.Table, bought: ir.Table) -> ir.Table:
    """Returns (id, negative) of choices that were bought for the same text or picture."""
    asked = keys(rows, "id").inner_join(choices, "id").select("id", "key", "negative")
    return asked.semi_join(bought, [("key", "key"), ("negative", "product")]).select("id", "negative").distinct()
