"""Personal data, by the name of a column and by the look of a value: what a benchmark must not hold (paper 4.2).

By name: who bought (user, buyer, account, nick name, id card, ...), how to reach them (phone, e-mail, address, ...),
what they are (birth date, age, sex), what they used (device, IP address, cookie, session, place), what they paid with,
and the number of the order, which leads to all of it.

By look: e-mail addresses, phone numbers (international, Chinese mobile, North American), Chinese id numbers, payment
cards (Luhn), IBANs (mod 97), IP addresses, street addresses (Chinese, English, German), names on messengers. Rules of
this kind find what is written in the usual way and nothing else: they are a net, not a proof.
"""

import itertools
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable

_WORDS = {
    "a person": "user users userid uid buyer buyers customer customers cust member memberid visitor client shopper "
    "account acct login nick nickname username firstname lastname fullname surname person passport ssn idcard "
    "receiver recipient consignee guest purchaser payer openid unionid",
    "a way to reach them": "phone phones mobile mobilephone cellphone telephone tel fax email mail emails wechat "
    "weixin whatsapp telegram qq address addr street postcode postal zip zipcode msisdn phonenumber phoneno "
    "mobilenumber emailaddress",
    "what they are": "birthday birthdate birth dateofbirth dob age gender sex",
    "what they used": "ip ipv4 ipv6 ipaddress mac device deviceid imei imsi idfa gaid oaid udid cookie cookies session "
    "sessionid useragent lat lon lng latitude longitude gps geo location",
    "what they paid with": "iban card creditcard cardnumber cardno bank payment alipay cvv password passwd token",
    "their order": "order orderid orders trade tradeid transaction invoice",
}
_KIND_OF = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_PAIRS = {
    ("first", "name"), ("last", "name"), ("full", "name"), ("real", "name"), ("user", "name"), ("id", "card"),
    ("family", "name"), ("given", "name"), ("contact", "name"), ("contact", "person"), ("contact", "number"),
    ("contact", "no"), ("contact", "info"),
}  # fmt: skip
_COMPOUND = re.compile(  # written as one word
    r"(?:user|buyer|customer|cust|member|client|receiver|recipient|consignee|purchaser|payer|visitor|shopper|contact"
    r"|account|shipping|delivery|billing|order|trade|transaction)s?(?P<of>[a-z]+)"
)
_IN_COMPOUND = frozenset(("id", "name", "no", "num", "number", "code", "key", "nick", "info", "person"))
_CHINESE = (
    "用户", "买家", "会员", "姓名", "昵称", "手机", "电话", "邮箱", "地址", "身份证", "生日", "订单", "银行卡", "微信",
    "设备", "收货人", "客户", "账号", "账户", "帐号", "联系人", "性别", "年龄", "支付宝",
    "手機", "電話", "買家", "會員", "帳號", "訂單", "郵箱", "收貨人", "聯絡人", "性別",
)  # fmt: skip
_OF_PRODUCT = ("item", "product", "sku", "listing", "goods", "query", "image", "picture")
_EITHER = frozenset(
    ("card", "age", "sex", "gender", "address", "location", "device", "bank", "phone", "mobile")
)  # of a product: harmless
# A column is about what its last word says: user_query and order_time are a query and a time.
_LAST_HARMLESS = frozenset(
    ("time", "date", "datetime", "timestamp", "ts", "day", "query", "queries", "search", "keyword", "keywords")
)
_BEFORE_HARMLESS = frozenset(
    (
        "user",
        "users",
        "buyer",
        "buyers",
        "customer",
        "customers",
        "cust",
        "visitor",
        "shopper",
        "order",
        "orders",
        "trade",
        "transaction",
        "payment",
    )
)
_CHINESE_HARMLESS = re.compile(
    r"(?:用户|买家|買家|会员|會員|客户|订单|訂單)(?:下单|支付|付款|成交|购买)?"
    r"(?:时间|時間|日期|查询|查詢|搜索词?|关键词)"
)

_DIGIT_OR_SIGN = re.compile(r"[\d@]|微信|wechat|weixin|whatsapp|wxid", re.IGNORECASE)
_EMAIL = re.compile(r"[\w.+-]+@(?!\dx\.)[\w-]+\.[\w.-]*\w")  # icon@2x.png is a picture
_LOOKS = (
    ("e-mail", _EMAIL),
    (
        "id number",
        re.compile(
            r"(?<!\d)[1-9]\d{5}[ .-]?(?:19|20)\d{2}[ .-]?(?:0[1-9]|1[0-2])[ .-]?(?:0[1-9]|[12]\d|3[01])[ .-]?"
            r"\d{3}[ .-]?[\dXx](?!\d)"
            r"|(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"
            r"|(?<![a-z])ssn\W{0,3}\d{3}[ .-]?\d{2}[ .-]?\d{4}(?!\d)",
            re.IGNORECASE,
        ),
    ),
    (
        "phone number",
        re.compile(
            r"(?<!\d)1[3-9]\d[ .-]?\d{4}[ .-]?\d{4}(?!\d)"
            r"|(?<![\d+])(?:\+|00)[1-9]\d{0,2}[ ./()-]{0,2}(?:\d[ ./()-]{0,2}){6,12}\d(?!\d)"
            r"|(?<!\d)(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?!\d)"
        ),
    ),
    ("IP address", re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")),
    (
        "address",
        re.compile(
            r"[\u4e00-\u9fff](?:路|街|道|巷|弄|胡同)\s?\d+\s?(?:号|弄)"
            r"|\d+\s?(?:号楼|单元|室)(?:\s|,|，|$)"
            r"|(?<!\w)\d{1,5} (?:[A-Z][\w'.]* ){1,3}(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Drive)(?!\w)"
            r"|\w+(?:straße|strasse|str\.) ?\d{1,4}(?!\d)"
        ),
    ),
    (
        "messenger",
        re.compile(
            r"(?:微信号?|wechat|weixin|whatsapp|(?<![a-z])(?:qq|wx)) ?: ?[\w+-]{5,}"
            r"|(?<![a-z])qq(?:号|群)? ?\d{5,11}(?!\d)"
            r"|(?:微信号?|wechat|weixin|(?<![a-z])wx) ?\d{6,11}(?!\d)"
            r"|(?:微信号?|(?<![a-z])(?:wechat|weixin|wx) ) ?(?=[a-z_-]*\d)[a-z][a-z0-9_-]{5,19}(?![a-z0-9])"
            r"|(?<![a-z])wxid_\w{4,}",
            re.IGNORECASE,
        ),
    ),
)
_CARD = re.compile(r"(?<!\d)[3-6]\d{3}(?:[ .-]?\d{4}){2}[ .-]?\d{3,4}(?:[ .-]?\d{3})?(?!\d)")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_PICTURE = re.compile(
    r"//[^/]*@"
    r"|[?&;#](?:(?:user|buyer|customer|member|client|account|session)(?:_?(?:id|name|no|nick))?|uid|sid|phone|mobile|tel"
    r"|e?mail|(?:access_?|auth_?|refresh_?|id_?)?token|open_?id|union_?id|sign)=",
    re.IGNORECASE,
)


def column_kind(name: str) -> str:
    """Returns what a column is about by its name ("a person"), or "" where the name says nothing personal.

    What may belong to a product (image_address, product_age) is not personal, nor is what a user searched, or when an
    order was made (user_query, order_time).
    """
    if any(part in _CHINESE_HARMLESS.sub("", name) for part in _CHINESE):
        return "a person"
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", unicodedata.normalize("NFKC", name))
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
    if words and words[-1] in _LAST_HARMLESS:
        words = [word for word in words if word not in _BEFORE_HARMLESS]
    of_product = any(word in _OF_PRODUCT for word in words)
    for word in (*words, "".join(words)):
        kind = _word_kind(word) or _word_kind(word.rstrip("0123456789"))  # user2
        if kind and not (of_product and word in _EITHER):
            return kind
    return "a person" if any(pair in _PAIRS for pair in itertools.pairwise(words)) else ""


def _word_kind(word: str) -> str:
    if word in _KIND_OF:
        return _KIND_OF[word]
    compound = _COMPOUND.fullmatch(word)
    return "a person" if compound and (compound["of"] in _IN_COMPOUND or compound["of"] in _KIND_OF) else ""


def columns(names: Iterable[str]) -> dict[str, str]:
    """Returns the personal ones among the names of columns, each with what it is about."""
    return {name: kind for name in names if (kind := column_kind(name))}


class _Spelling(dict):
    """Code point -> how it is written in the usual way, for `str.translate`; filled as characters are met."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        usual: str | None = character
        if category == "Cf":  # nothing to see: zero-width space, soft hyphen, marks of direction
            usual = None
        elif category == "Pd" or character == "\u2212":  # dashes; minus
            usual = "-"
        elif category == "Nd":
            usual = str(unicodedata.decimal(character))
        return self.setdefault(code, usual)


_USUAL = _Spelling()


def text_look(text: str) -> str:
    """Returns what personal thing a text holds by its look ("phone number"), or "".

    Characters are compared as they look: NFKC, any dash as "-", digits of any script, without what is not seen.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_USUAL)).translate(_USUAL)
    if not _DIGIT_OR_SIGN.search(text):
        return ""
    if any(_luhn(found.group()) for found in _CARD.finditer(text)):
        return "payment card"
    if any(_mod_97(found.group()) for found in _IBAN.finditer(text)):
        return "IBAN"
    return next((kind for kind, pattern in _LOOKS if pattern.search(text)), "")


def picture_look(reference: str) -> str:
    """Returns what personal thing a path or address of a picture holds, or "": numbers in file names mean nothing."""
    for spelling in (reference, urllib.parse.unquote(reference)):
        if _PICTURE.search(spelling):
            return "user in the address"
        if _EMAIL.search(spelling):
            return "e-mail"
    return ""


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _mod_97(text: str) -> bool:
    text = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1
