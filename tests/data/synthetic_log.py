"""A catalogue and a log of purchases with all that happens in logs, made from a seed; plain Python on purpose."""

import csv
import json
import pathlib
import random

import pyarrow as pa
import pyarrow.parquet as pq

INDUSTRIES = ("Apparel", "Grocery", "Toys", "Auctions")
WEIGHTS = (60, 30, 9, 1)  # auctions are rare
WORDS = ("Red", "rot", "Café", "ＷＩＤＥ", "mug", "蓝色", "shoe", "ΣΟΦΟΣ", "straße", "blue")


def catalogue(products: int, seed: int = 0) -> list[dict]:
    """Listings with 1 to 3 levels of category, some of them alone in their deepest one, some twice under two ids."""
    rng = random.Random(seed)
    listings = []
    for number in range(products):
        industry = rng.choices(INDUSTRIES, WEIGHTS)[0]
        category = [industry, f"{industry} {rng.randrange(3)}", f"leaf {rng.randrange(12)}"][
            : rng.choice((1, 2, 3, 3, 3))
        ]
        listing = {"id": f"p{number:05d}", "title": f"Product {number}", "image": f"images/{number}.jpg"}
        listings.append(listing | {"category": category, "brand": f"brand {number % 5}"})
        if rng.random() < 0.03:
            listings.append(listings[-1] | {"id": f"twin{number:05d}", "title": f"  PRODUCT   {number}"})
    return listings


def purchases(listings: list[dict], rows: int, seed: int = 0) -> list[dict]:
    """Rows of a log: popular queries, several spellings, pictures, repeats, unknown items, personal things, gaps."""
    rng = random.Random(seed + 1)
    by_industry = {name: [x for x in listings if x["category"][0] == name] for name in INDUSTRIES}
    out = []
    for number in range(rows):
        there = [name for name in INDUSTRIES if by_industry[name]]
        weights = [WEIGHTS[INDUSTRIES.index(name)] for name in there]
        listing = rng.choice(by_industry[rng.choices(there, weights)[0]])
        text = " ".join(rng.choice(WORDS) for _ in range(rng.choice((1, 2, 4, 4))))
        text = rng.choice((text, text.upper(), f" {text}\t", text + f" {rng.randrange(rows)}"))
        row = {
            "query": text,
            "query_image": "",
            "item_id": listing["id"],
            "time": f"2024-{rng.randrange(1, 13):02d}-05",
        }
        chance = rng.random()
        if chance < 0.3:
            row["query_image"] = f"queries/{rng.randrange(rows)}.jpg"
        if chance < 0.15:
            row["query"] = ""
        if 0.3 < chance < 0.31:
            row["query"] = "  "
        if 0.31 < chance < 0.32:
            row["item_id"] = f"gone{number}"
        if 0.32 < chance < 0.325:
            row["query"] += " 138 0013 8000"
        if 0.33 < chance < 0.34:
            row["query"] = "x\u0000\u0007" + row["query"] + "ÿ\ud7ff"
        if chance > 0.95 and out:  # somebody types it in another way and buys the same
            earlier = rng.choice(out)
            row = earlier | {"query": rng.choice((str.upper, str.lower, str.title))(earlier["query"])}
        out.append(row)
    return out


def write_catalogue(path: pathlib.Path, listings: list[dict]) -> pathlib.Path:
    path.write_text("".join(json.dumps(listing) + "\n" for listing in listings))
    return path


def write_log(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    """Writes a log as its name says: .csv, .jsonl or .parquet."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path
