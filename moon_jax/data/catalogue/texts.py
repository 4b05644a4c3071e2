"""Writes what sellers and shoppers say about a product: titles, descriptions, queries, in English and Chinese."""

import random

from moon_jax.data.catalogue import words
from moon_jax.data.catalogue.products import Product


def title(product: Product) -> str:
    """Returns the seller's title: every listed attribute, in each of the product's languages."""
    return " / ".join(_title(product, language) for language in product.languages)


def _title(product: Product, language: str) -> str:
    told = {k: words.VALUES[k][v].title(language) for k, v in product.look if k in product.listed}
    noun = product.leaf.noun.title(language)
    if language == "zh":
        order = ("brand", "category_modifier", "target_demographic", "season_occasion", "fashion_style", "color",
                 "style_elements", "material")  # fmt: skip
        return "".join(
            [*(told.get(k, "") for k in order), noun, f" {product.series}", told.get("size_specification", "")]
        )
    front = [told.get(k, "") for k in ("brand", "series", "category_modifier", "size_specification", "material")]
    front[1] = product.series
    text = " ".join(word for word in (*front, noun) if word)
    if "style_elements" in told:
        text += f" with {told['style_elements']}" if told["style_elements"] != "solid" else " in solid colour"
    tail = [told[k] for k in ("color", "fashion_style") if k in told]
    tail += [f"for {told[k]}" for k in ("target_demographic", "season_occasion") if k in told]
    return ", ".join([text, *tail])


def description(product: Product) -> str:
    """Returns one or two sentences per language about the product's line, without repeating the title."""
    noun, path = product.leaf.noun, product.leaf.path
    told = {
        "en": f"From the {product.series} line: a {noun.other_en[0]} from our range of {path[3].lower()}.",
        "zh": f"{product.series}系列，{noun.other_zh[0]}，品质可靠。",
    }
    return " ".join(told[language] for language in product.languages)


def query(product: Product, rng: random.Random) -> str:
    """Returns a shopper's words for it: some attributes, partly in other words, in another order than the title."""
    language = rng.choice(product.languages)
    likely = {"brand": 0.55, "color": 0.85, "style_elements": 0.75}  # what a shopper remembers; the rest less
    told = {}
    for key, value in product.look:
        if key in product.listed and rng.random() < likely.get(key, 0.4):
            told[key] = rng.choice(words.VALUES[key][value].shopper(language))
    noun = rng.choice(product.leaf.noun.shopper(language))
    series = product.series if rng.random() < 0.15 else ""
    return _chinese(told, noun, series, rng) if language == "zh" else _english(told, noun, series, rng)


def _english(told: dict[str, str], noun: str, series: str, rng: random.Random) -> str:
    """Puts the told values together as an English search line or question."""
    looks = [
        told[k] for k in ("size_specification", "fashion_style", "color", "style_elements", "material") if k in told
    ]
    if rng.random() < 0.5:
        looks.reverse()
    extra = [f"for {told[k]}" for k in ("target_demographic", "season_occasion") if k in told]
    modifier = [told["category_modifier"]] if "category_modifier" in told else []
    maker = [f"{told.get('brand', '')} {series}".strip()] if series or "brand" in told else []
    form = rng.randrange(3)
    if form == 0:
        return " ".join([*looks, noun, *extra, *modifier, *maker])
    if form == 1:
        by = [f"by {maker[0]}"] if maker else []
        return " ".join(["looking for", *modifier, *looks, noun, *by, *extra])
    return " ".join([noun, *maker, *looks, *modifier, *extra])


def _chinese(told: dict[str, str], noun: str, series: str, rng: random.Random) -> str:
    """Puts the told values together as a Chinese search line or wish."""
    maker = [word for word in (told.pop("brand", ""), series) if word]
    rest = list(told.values())
    rng.shuffle(rest)
    form = rng.randrange(3)
    if form == 0:
        return " ".join([noun, *rest, *maker])
    if form == 1:
        return f"想买{''.join(f'{word}的' for word in rest)}{noun}" + (f"，{' '.join(maker)}牌子" if maker else "")
    return " ".join([*rest, noun, *maker])
