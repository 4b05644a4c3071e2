"""The parts of `prepare` by hand: what looks personal, quotas, times, and the negatives that a model finds."""

import datetime

import jax
import numpy as np
import pytest
import synthetic_log
import tiny_hf
from PIL import Image

import moon_jax
from moon_jax.config import MeshConfig
from moon_jax.data.benchmark import mining, personal
from moon_jax.data.benchmark.functions import DRAWN, NO_TIME, clean, draw, normal, seconds
from moon_jax.data.benchmark.listings import Listings, listings
from moon_jax.data.benchmark.sampling import quotas
from moon_jax.data.records import DataError, Dataset, ImageRef, Product
from moon_jax.data.split import is_unseen
from moon_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to Anna.B+shop@example.co.uk please", "e-mail"),
        ("打电话 13800138000", "phone number"),
        ("1 3 8 00138000", ""),
        ("call +49 (0)30 901820", "phone number"),
        ("(212) 555-0187", "phone number"),
        ("212-555-0187 red mug", "phone number"),
        ("１３８００１３８０００", "phone number"),  # full width
        ("身份证 11010519491231002X", "id number"),
        ("110105194913310021", ""),  # no such month
        ("card 4111 1111 1111 1111", "payment card"),
        ("4111 1111 1111 1112", ""),  # Luhn
        ("DE89 3704 0044 0532 0130 00", "IBAN"),
        ("DE88 3704 0144 0532 0131 10", ""),  # mod 97
        ("from 192.168.0.17", "IP address"),
        ("version 1.2.3", ""),
        ("192.168.0.256", ""),
        ("上海市南京东路100号", "address"),
        ("221 Baker Street", "address"),
        ("Hauptstraße 12", "address"),
        ("加微信：shop_12345", "messenger"),
        ("138\u200b0013\u00ad8000", "phone number"),  # what is not seen
        ("138\u20130013\u22128000", "phone number"),  # dashes
        ("138.0013.8000", "phone number"),
        ("١٣٨٠٠١٣٨٠٠٠", "phone number"),  # Arabic digits
        ("4111.1111.1111.1111", "payment card"),
        ("110105 19491231 002X", "id number"),
        ("078-05-1120", "id number"),
        ("SSN: 078051120", "id number"),
        ("加 QQ123456789", "messenger"),
        ("qq群 12345678", "messenger"),
        ("微信123456789", "messenger"),
        ("wx:shop_12345", "messenger"),
        ("加wx shop12345", "messenger"),
        ("wxid_a1b2c3d4", "messenger"),
        ("Sony DSC-WX500 black", ""),
        ("wechat sticker 2024", ""),
        ("QQ 60 x 40", ""),
        ("000-12-3456", ""),  # no such number
        ("iphone 15 pro max 256", ""),
        ("levi's 501 w32 l34", ""),
        ("4006381333931", ""),  # EAN
        ("12V 100Ah 1200x800x600 mm", ""),
        ("ISBN 978-3-16-148410-0", ""),
        ("LEGO 75192", ""),
        ("2 pack @ home", ""),
        ("", ""),
    ],
)
def test_what_looks_personal(text, kind):
    assert personal.text_look(text) == kind


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("https://cdn.example.com/p/13800138000.jpg?size=400", ""),
        ("https://anna:secret@example.com/a.jpg", "user in the address"),
        ("https://example.com/a.jpg?w=1&user_id=7", "user in the address"),
        ("uploads/anna@example.com/1.jpg", "e-mail"),
        ("https://example.com/a.jpg?access_token=7", "user in the address"),
        ("https://example.com/a.jpg?w=1;user=7", "user in the address"),
        ("https://example.com/a.jpg#user=7", "user in the address"),
        ("https://example.com/a.jpg?openid=7", "user in the address"),
        ("https://example.com/a.jpg?buyer=7", "user in the address"),
        ("https://example.com/a.jpg%3Fuser%3D7", "user in the address"),
        ("uploads/john%40example.com/1.jpg", "e-mail"),
        ("icons/cart@2x.png", ""),
        ("https://example.com/a.jpg?designer=7&tokens=1", ""),
        ("queries/1.jpg", ""),
    ],
)
def test_what_looks_personal_in_the_path_of_a_picture(reference, kind):
    assert personal.picture_look(reference) == kind


def test_what_is_personal_by_name():
    refused = (
        "user_id", "userId", "USERID", "buyer", "BuyerNick", "customer-no", "phone", "shipping address", "e-mail",
        "email", "ip", "client_ip", "deviceId", "session", "order_id", "birth_date", "first name", "full_name",
        "收货地址", "手机号", "query_user", "cookie", "lat", "zip", "query_email",
        "buyerid", "customerid", "phonenumber", "useremail", "emailaddress", "buyername", "dateofbirth",
        "deliveryaddress", "BUYERPHONE", "user2", "buyer1", "openid", "unionid", "contact_name", "purchaser_id",
        "payer", "cardno", "msisdn", "收货人", "客户", "账号", "联系人", "性别", "年龄", "支付宝", "手機", "電話",
        "user_birth_date",
    )  # fmt: skip
    fine = (
        "query", "query_text", "query_image", "item_id", "time", "ts", "title", "category", "price", "image_address",
        "product_age", "clicks", "platform", "relation", "description", "item_location", "zipper", "latex", "名称",
        "order_time", "order_date", "orderTime", "transaction_time", "user_query", "订单时间", "custom", "cardigan",
        "userquery", "items1", "address_of_item",
    )  # fmt: skip
    assert set(personal.columns((*refused, *fine))) == set(refused)


def test_times():
    noon = int(datetime.datetime(2024, 3, 5, 12, tzinfo=datetime.UTC).timestamp())
    for text in ("2024-03-05T12:00:00Z", "2024-03-05 12:00", "2024-03-05T20:00:00+08:00", str(noon), f"{noon}123"):
        assert seconds(text) == noon
    assert seconds("2024-03-05") == noon - 12 * 3600
    for text in ("", "soon", "1850-01-01", "-5", "2024-13-01", "²", "9" * 5000):
        assert seconds(text) == NO_TIME or text.startswith("9")


def test_texts():
    assert clean(" a\x00b\t\u2028c\u200d ") == "a b c\u200d"
    assert normal("Ｒed  ΣΊΣΥΦΟΣ Straße") == normal("red σίσυφος STRASSE")
    numbers = [draw(str(n)) for n in range(2000)]
    assert 0 <= min(numbers) < DRAWN / 100
    assert DRAWN * 0.99 < max(numbers) < DRAWN
    assert abs(np.mean(numbers) / DRAWN - 0.5) < 0.03


def test_quotas_by_hand():
    bought = {"a": 600, "b": 300, "c": 99, "d": 1}
    plenty = dict.fromkeys(bought, 1000)
    assert quotas(bought, plenty, 100, 0) == {"a": 60, "b": 30, "c": 10, "d": 0}
    assert quotas(bought, plenty, 109, 10) == {"a": 59, "b": 30, "c": 10, "d": 10}  # 99 over 600 : 300 : 99
    assert quotas(bought, plenty | {"d": 3}, 103, 10) == {"a": 60, "b": 30, "c": 10, "d": 3}
    assert quotas(bought, plenty | {"a": 20}, 100, 0) == {"a": 20, "b": 60, "c": 20, "d": 0}  # 80 over 300 : 99 : 1
    assert quotas(bought, {"a": 5, "b": 6}, 100, 0) == {"a": 5, "b": 6}
    assert quotas({"a": 1, "b": 1, "c": 1}, {"a": 9, "b": 9, "c": 9}, 4, 0) == {"a": 2, "b": 1, "c": 1}
    with pytest.raises(DataError, match="lower --floor"):
        quotas(bought, plenty, 39, 10)


def test_quotas_always_fit():
    rng = np.random.default_rng(0)
    for _ in range(60):
        names = [f"i{n}" for n in range(rng.integers(1, 30))]
        bought = {name: int(rng.integers(1, 10 ** rng.integers(1, 7))) for name in names}
        there = {name: int(rng.integers(1, bought[name] + 1)) for name in names}
        floor = int(rng.integers(0, 5))
        rows = int(rng.integers(floor * len(names), sum(there.values()) + floor * len(names) + 2))
        found = quotas(bought, there, rows, floor)
        assert sum(found.values()) == min(rows, sum(there.values()))
        assert all(min(floor, there[name]) <= found[name] <= there[name] for name in names)


def test_the_closest_below_the_ceiling():
    scores = np.array(
        [[0.9, 0.5, 0.7, 0.7], [0.1, 0.2, 0.3, 0.4], [0.5, np.nan, 0.2, 0.1], [0.5, 0.4, 0.3, 0.2]], np.float32
    )
    ceiling = np.array([0.9, 0.1, 0.5, np.nan], np.float32)
    banned = np.zeros((4, 4), bool)
    assert mining.closest(scores, ceiling, banned).tolist() == [2, -1, 2, -1]
    banned[0, 2] = True
    assert mining.closest(scores, ceiling, banned).tolist() == [3, -1, 2, -1]


def test_a_personal_title_leaves_a_listing_out():
    products = {
        "a": Product("a", "mug, call 13800138000"),
        "b": Product("b", "mug", "mail anna@example.com", attributes=(("color", ("red",)), ("seller", ("a@b.de",)))),
        "c": Product("c", "cup", images=(ImageRef("x.jpg"),)),
    }
    found = listings(Dataset((), (), (), products, "", {}), 0.2)
    assert found.products.keys() == found.product_of.keys() == {"b", "c"}
    assert found.products["b"].description == ""
    assert found.products["b"].attributes == (("color", ("red",)),)
    assert found.report == {
        "listings": 3, "listings_with_a_personal_title": 1, "repeated_listings": 0, "personal_descriptions_removed": 1,
        "personal_attributes_removed": 1,
    }  # fmt: skip


@pytest.mark.usefixtures("quick_compilation")
def test_a_model_finds_negatives(tmp_path):
    model = moon_jax.load(
        tiny_hf.write(tmp_path / "model"), make_mesh(MeshConfig(data=1), jax.devices()[:1]), "float32"
    )
    rng = np.random.default_rng(0)
    products = {}
    for number, listing in enumerate(synthetic_log.catalogue(24)[:24]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (24, 24, 3)).astype(np.uint8)).save(path)
        category = tuple(listing["category"])
        products[listing["id"]] = Product(
            listing["id"], listing["title"], images=(ImageRef(str(path)),), category=category
        )
    (tmp_path / "0.png").write_text("no picture")
    found = Listings(products, {}, 0.3, {})
    ids = list(products)
    bought = {"text of 5": [ids[5], ids[6], ids[7]]}
    rows = [
        {"test": found.of_test(product), "text": f"query {n:02d} " + "abcdefgh"[n % 8] * 4, "image": "",
         "product": product, "keys": (f"text of {n}", ""), "negative": "before", "depth": 1}
        for n, product in enumerate(ids)
    ]  # fmt: skip
    miner = mining.Miner(model, found, bought, 0.01, batch=8)
    made = list(miner.apply([[dict(row) for row in rows]]))

    known = [product for product in ids if product != ids[0]]
    vectors = dict(zip(known, model.encode_item([mining.item(products[p]) for p in known], batch_size=8), strict=True))
    queries = model.encode_query([{"text": row["text"]} for row in rows], batch_size=8)
    mined = 0
    assert {row["product"] for row in made} == set(ids)
    for row, query in zip(rows, queries, strict=True):
        after = next(one for one in made if one["product"] == row["product"])
        answers = {row["product"], *bought.get(row["keys"][0], ())}
        fits = {
            product: float(query @ vector)
            for product, vector in vectors.items()
            if is_unseen(product, 0.3) == row["test"] and product not in answers and row["product"] in vectors
            and query @ vector < query @ vectors[row["product"]] - 0.01
        }  # fmt: skip
        if not fits:
            assert (after["negative"], after["depth"]) == ("before", 1)
            continue
        mined += 1
        assert fits[after["negative"]] > max(fits.values()) - 1e-5  # the model's last bits depend on the batch
        one, other = products[row["product"]].category, products[after["negative"]].category
        assert after["depth"] == max([d for d in range(1, 4) if d <= len(one) and one[:d] == other[:d]], default=0)
    assert miner.counts == {"mined": mined, "kept": len(ids) - mined}
    assert mined > 6
