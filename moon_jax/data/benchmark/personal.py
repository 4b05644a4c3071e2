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
from collections.abc import Iterable

_WORDS = {
    "a person": "user users userid uid buyer buyers customer customers cust member memberid visitor client shopper "
    "account acct login nick nickname username firstname lastname fullname surname person passport ssn idcard "
    "receiver recipient consignee guest",
    "a way to reach them": "phone phones mobile mobilephone cellphone telephone tel fax email mail emails wechat "
    "weixin whatsapp telegram qq address addr street postcode postal zip zipcode",
    "what they are": "birthday birthdate birth dob age gender sex",
    "what they used": "ip ipv4 ipv6 ipaddress mac device deviceid imei imsi idfa gaid oaid udid cookie cookies session "
    "sessionid useragent lat lon lng latitude longitude gps geo location",
    "what they paid with": "iban card creditcard cardnumber bank payment alipay cvv password passwd token",
    "their order": "order orderid orders trade tradeid transaction invoice",
}
_KIND_OF = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_PAIRS = {
    ("first", "name"), ("last", "name"), ("full", "name"), ("real", "name"), ("user", "name"), ("id", "card"),
    ("family", "name"), ("given", "name"),
}  # fmt: skip
_CHINESE = (
    "用户", "买家", "会员", "姓名", "昵称", "手机", "电话", "邮箱", "地址", "身份证", "生日", "订单", "银行卡", "微信",
    "设备",
)  # fmt: skip
_OF_PRODUCT = ("item", "product", "sku", "listing", "goods", "query", "image", "picture")
_EITHER = (
    "card",
    "age",
    "sex",
    "gender",
    "address",
    "location",
    "device",
    "bank",
    "phone",
    "mobile",
)  # of a product: not personal

_DIGIT_OR_SIGN = re.compile(r"[\d@]|微信|wechat|weixin|whatsapp", re.IGNORECASE)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")
_LOOKS = (
    ("e-mail", _EMAIL),
    (
        "id number",
        re.compile(r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d)"),
    ),
    (
        "phone number",
        re.compile(
            r"(?<!\d)1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)"
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
    ("messenger", re.compile(r"(?:微信号?|wechat|weixin|whatsapp|qq) ?[:：] ?[\w+-]{5,}", re.IGNORECASE)),
)
_CARD = re.compile(r"(?<!\d)[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{3,4}(?:[ -]?\d{3})?(?!\d)")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_PICTURE = re.compile(r"//[^/]*@|[?&](?:user|user_?id|uid|phone|mobile|email|token|sign|session)=", re.IGNORECASE)


def column_kind(name: str) -> str:
    """Returns what a column is about by its name ("a person"), or "" where the name says nothing personal.

    What may belong to a product (image_address, product_age) is not personal.
    """
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", unicodedata.normalize("NFKC", name))
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
    if any(part in name for part in _CHINESE):
        return "a person"
    of_product = any(word in _OF_PRODUCT for word in words)
    joined = "".join(words)
    for word in (*words, joined):
        if word in _KIND_OF and not (of_product and word in _EITHER):
            return _KIND_OF[word]
    return "a person" if any(pair in _PAIRS for pair in itertools.pairwise(words)) else ""


def columns(names: Iterable[str]) -> dict[str, str]:
    """Returns the personal ones among the names of columns, each with what it is about."""
    return {name: kind for name in names if (kind := column_kind(name))}


def text_look(text: str) -> str:
    """Returns what personal thing a text holds by its look ("phone number"), or ""."""
    text = unicodedata.normalize("NFKC", text)
    if not _DIGIT_OR_SIGN.search(text):
        return ""
    if any(_luhn(found.group()) for found in _CARD.finditer(text)):
        return "payment card"
    if any(_mod_97(found.group()) for found in _IBAN.finditer(text)):
        return "IBAN"
    return next((kind for kind, pattern in _LOOKS if pattern.search(text)), "")


def picture_look(reference: str) -> str:
    """Returns what personal thing a path or address of a picture holds, or "": numbers in file names mean nothing."""
    if _PICTURE.search(reference):
        return "user in the address"
    return "e-mail" if _EMAIL.search(reference) else ""


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _mod_97(text: str) -> bool:
    text = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1
