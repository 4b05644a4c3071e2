"""What of a log can be used, and why the rest cannot: one row per query and product, whoever bought it how often."""

import dataclasses

import ibis
import ibis.expr.types as ir

from moon_jax.data.benchmark.engine import Engine
from moon_jax.data.benchmark.functions import CLEAN, NO_TIME, NORMAL, PICTURE_LOOK, REFERENCE, TEXT_LOOK
from moon_jax.data.records import DataError

LONGEST_QUERY = 1000  # characters; longer ones are not what a customer types
PERSONAL = "personal: "  # what the reasons for personal rows begin with
UNKNOWN_ITEM = "item not in the catalogue"


@dataclasses.dataclass(frozen=True)
class Window:
    """The time that purchases are taken from, in seconds since 1970; None = no bound."""

    since: int | None = None  # this second and later
    until: int | None = None  # before this second


ALWAYS = Window()


def judged(log: ir.Table, listings: ir.Table, window: Window, pictures: str) -> ir.Table:
    """Returns every row of the log with its product and `dropped`, the first reason against it ("" = it is used).

    Columns: text, image (cleaned), text_key, image_key (md5 of what makes two queries the same; "" = none), product,
    test, industry, time, dropped.

    Args:
        log: the rows.
        listings: of the catalogue.
        window: of times.
        pictures: folder where relative paths of query pictures start; `image` is relative to it, in one spelling.
    """
    rows = log.mutate(text=CLEAN(log.query_text), image=CLEAN(log.query_image), item=CLEAN(log.item_id))
    rows = rows.left_join(listings, "item").drop("item_right")
    rows = rows.mutate(about=TEXT_LOOK(rows.text), picture_about=PICTURE_LOOK(rows.image))
    rows = rows.mutate(image=REFERENCE(rows.image, ibis.literal(pictures)))
    reasons = [
        ((rows.text == "") & (rows.image == ""), "no query"),
        (rows.item == "", "no item"),
        (rows.text.length() > LONGEST_QUERY, f"query text of more than {LONGEST_QUERY} characters"),
        (rows.about != "", ibis.literal(PERSONAL) + rows.about + " in the query text"),
        (rows.picture_about != "", ibis.literal(PERSONAL) + rows.picture_about + " in the picture's path"),
        (rows["product"].isnull(), UNKNOWN_ITEM),
    ]
    if window != ALWAYS:
        reasons.append((rows.time == NO_TIME, "time cannot be read"))
    if window.since is not None:
        reasons.append((rows.time < window.since, "before --since"))
    if window.until is not None:
        reasons.append((rows.time >= window.until, "after --until"))
    return rows.select(
        "text",
        "image",
        "item",
        "product",
        "test",
        "industry",
        "time",
        text_key=(rows.text != "").ifelse(_md5("text\n", NORMAL(rows.text)), ""),
        image_key=(rows.image != "").ifelse(_md5("image\n", rows.image), ""),
        dropped=ibis.cases(*reasons, else_=""),
    )


def _md5(kind: str, text: ir.StringValue) -> ir.StringValue:
    return (ibis.literal(kind) + text).hexdigest("md5")


def check_look(dropped: dict[str, int], rows: int, most_share: float) -> None:
    """Checks that few texts look personal: of many, it is the column that is.

    Raises:
        DataError: more than `most_share` of the rows; values are not shown.
    """
    looks = {reason: count for reason, count in dropped.items() if reason.startswith(PERSONAL)}
    if sum(looks.values()) > most_share * rows:
        said = "; ".join(f"{reason.removeprefix(PERSONAL)}: {count:,} rows" for reason, count in sorted(looks.items()))
        raise DataError(
            f"{said}, of {rows:,}. That is more than --max_personal_share={most_share:g}, so the column itself looks "
            "personal: remove what is personal from the log, or map another column"
        )


def distinct(rows: ir.Table, seed: int, engine: Engine) -> ir.Table:
    """Returns one row per query and product: the smallest of its spellings, how often, and an id from its md5.

    Queries are the same if their texts are (but for case, spaces and width) and their pictures have one reference.
    """
    keys = ["text_key", "image_key", "product", "test", "industry"]
    rows = rows.filter(rows.dropped == "")
    found = rows.group_by(keys).agg(text=rows.text.min(), image=rows.image.min(), purchases=rows.count())
    parts = ibis.literal(f"{seed}\n") + found.text_key + "\n" + found.image_key + "\n" + found["product"]
    return engine.stage(found.mutate(id=parts.hexdigest("md5")), "distinct.parquet")
