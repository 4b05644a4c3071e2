"""Which addresses pictures may be fetched from: public ones, checked where a connection is made."""

import errno
import ipaddress
import socket
from typing import Any

import yarl

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_RELAYS = ipaddress.ip_network("192.88.99.0/24")  # 6to4 relays (RFC 7526), which Python calls global
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # Python calls more global, such as the site-local fec0::/10
MAX_URL = 8000
MAX_LABEL = 63  # of a host name, RFC 1035


def is_public(address: str) -> bool:
    """Returns whether an IP address is one of the public internet.

    No loopback, private, link-local (cloud metadata), shared, multicast, reserved or documentation address; IPv6
    addresses that carry an IPv4 one are judged by that too.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None or ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL_UNICAST or not all(is_public(str(v4)) for v4 in (ip.sixtofour, *(ip.teredo or ())) if v4):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip in _RELAYS)


def public_socket(addr_info: tuple[Any, ...]) -> socket.socket:
    """Returns a socket for an address (one that `getaddrinfo` gives) that is about to be connected.

    Names are judged here by what they resolve to now, so neither a redirect nor a name server that changes its answer
    leads elsewhere.

    Raises:
      OSError: EPERM, the address is not public.
    """
    family, kind, protocol, _, address = addr_info
    if not is_public(address[0]):
        raise OSError(errno.EPERM, f"{address[0]} is no public address")
    return socket.socket(family, kind, protocol)


def url_problem(url: str) -> str:
    """Returns why a URL is not fetched, "" if it may be: only http and https, with a host and no password."""
    if len(url) > MAX_URL:
        return f"longer than {MAX_URL} characters"
    try:
        parsed = yarl.URL(url)
        if parsed.scheme not in ("http", "https"):
            return f"scheme {parsed.scheme or 'missing'!s}, only http and https are fetched"
        if not parsed.host or parsed.port is None or any(character.isspace() for character in parsed.host):
            return "no host"
        if any(not 1 <= len(label) <= MAX_LABEL for label in (parsed.raw_host or "").removesuffix(".").split(".")):
            return f"no host name: its parts have 1 to {MAX_LABEL} letters"
        if parsed.user is not None or parsed.password is not None:
            return "a user name or password in it"
    except ValueError as error:
        return f"no URL ({error})"
    return ""
