"""Invents the products: families of variants that differ in one attribute, as a seller lists them."""

import dataclasses
import random

from moon_jax.data.catalogue import words
from moon_jax.data.catalogue.tree import LEAVES, Leaf

VISIBLE = ("color", "brand", "style_elements", "material", "size_specification", "fashion_style")  # seen in a picture
_LISTED = {
    "color": 0.95, "category_modifier": 0.35, "brand": 0.9, "size_specification": 0.5, "material": 0.75,
    "style_elements": 0.8, "fashion_style": 0.5, "target_demographic": 0.4, "season_occasion": 0.4,
}  # fmt: skip  # how often a seller fills an attribute in: many of MBE's are empty
_LANGUAGES = (("en",), ("en",), ("zh",), ("en", "zh"))
_SYLLABLES = ("al", "ber", "co", "da", "el", "fi", "gra", "hu", "ina", "jo", "ki", "lor", "mi", "nor", "ota", "pe",
              "qui", "ra", "sol", "ti", "una", "ve", "wil", "xa", "yo", "zen")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Product:
    """One product as invented: `look` fills every attribute that can be drawn, `listed` are those in the record.

    `negative` is the number of the sibling that differs from it in exactly one listed attribute.
    """

    number: int
    family: int
    leaf: Leaf
    languages: tuple[str, ...]
    series: str
    second_color: str
    look: tuple[tuple[str, str], ...]
    listed: tuple[str, ...]
    negative: int

    @property
    def item_id(self) -> str:
        """The id in the records."""
        return f"catalogue:{self.number:06d}"

    @property
    def attributes(self) -> dict[str, list[str]]:
        """The attributes of the record: key -> values, in the order of MBE's keys; empty ones are left out."""
        values = dict(self.look) | {"category": self.leaf.noun.en}
        return {key: [values[key]] for key in ("color", "category", *list(words.VALUES)[1:]) if key in self.listed}

    @property
    def category(self) -> dict[str, str]:
        """The category of the record: industry and four levels."""
        return dict(zip(("industry", "cate1", "cate2", "cate3", "cate4"), self.leaf.path, strict=True))


def _family(seed: int, family: int, leaf: Leaf, first: int, most: int) -> list[Product]:
    """Returns the variants of one family, numbered from `first`, at most `most` of them (two at least)."""
    rng = random.Random(f"catalogue/{seed}/family/{family}")
    look = {key: rng.choice(list(table)) for key, table in words.VALUES.items()}
    look["material"] = rng.choice(leaf.materials)
    if rng.random() < 0.25:
        look["style_elements"] = "solid"  # shops are full of it
    listed = {key for key, share in _LISTED.items() if rng.random() < share} | {"category"}
    rivals = [color for color in words.COLORS if color != look["color"]]
    series = "".join(rng.choice(_SYLLABLES) for _ in range(2)).capitalize() + f" {rng.randrange(1, 10) * 10}"
    languages, second_color = rng.choice(_LANGUAGES), rng.choice(rivals)
    size = min(rng.choice((2, 3, 3, 4)), most)
    size = most if most - size == 1 else size  # a single product left over would have no sibling

    looks = [look]
    changeable = [key for key in VISIBLE if key != "material" or len(leaf.materials) > 1]
    while len(looks) < size:
        key = rng.choices(changeable, [3 if key in ("color", "style_elements", "brand") else 1 for key in changeable])[
            0
        ]
        options = leaf.materials if key == "material" else list(words.VALUES[key])
        variant = look | {key: rng.choice(options)}
        if variant not in looks and variant["color"] != second_color:
            looks.append(variant)
            listed.add(key)
    return [
        Product(
            number=first + i, family=family, leaf=leaf, languages=languages, series=series, second_color=second_color,
            look=tuple(variant.items()), listed=tuple(sorted(listed)), negative=first if i else first + 1,
        )
        for i, variant in enumerate(looks)
    ]  # fmt: skip


def invent(products: int, seed: int) -> list[Product]:
    """Returns `products` products, the same for the same seed; every leaf in turn gets a family."""
    order: list[Leaf] = []
    out: list[Product] = []
    family = 0
    while len(out) < products:
        if not order:
            order = list(LEAVES)
            random.Random(f"catalogue/{seed}/order/{family}").shuffle(order)
        out += _family(seed, family, order.pop(), len(out), products - len(out))
        family += 1
    return out
