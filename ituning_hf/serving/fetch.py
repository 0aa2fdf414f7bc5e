"""Fetch images by URL, from public addresses only.

Otherwise a stranger could use the server to reach other machines of its network. The addresses of a host
are resolved first, all of them must be public, and the request goes to an address that was checked. The same
holds for each redirect.
"""

from __future__ import annotations

import asyncio
import re
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx2

from .errors import RequestError

SECONDS = 10.0  # for all redirects and the body together
MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_URL = re.compile("https?://", re.IGNORECASE)
_GLOBAL_UNICAST = IPv6Network("2000::/3")


def is_url(image: str) -> bool:
    """Return whether the image of a request is a URL, rather than base64."""
    return _URL.match(image) is not None


async def fetch_image(url: str, max_bytes: int) -> bytes:
    """Fetch an image by an http or https URL. Proxies in the environment are not used.

    Raises:
        RequestError: The URL cannot be fetched, its address is not public, or there are more bytes.
    """
    try:
        async with asyncio.timeout(SECONDS), httpx2.AsyncClient(trust_env=False, timeout=SECONDS) as client:
            target = httpx2.URL(url)
            for _ in range(MAX_REDIRECTS + 1):
                found = await _get(client, target, max_bytes)
                if isinstance(found, bytes):
                    return found
                target = found
    # OSError: also of the timeout. UnicodeError: a host name that cannot be encoded.
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
        reason = str(error) or type(error).__name__
        raise RequestError(422, f"the image's URL cannot be fetched: {reason}") from error
    raise RequestError(422, f"the image's URL leads to more than {MAX_REDIRECTS} redirects")


async def _get(client: httpx2.AsyncClient, url: httpx2.URL, max_bytes: int) -> bytes | httpx2.URL:
    """Return the body, or the URL to which the answer redirects."""
    if url.scheme not in _PORTS:
        raise RequestError(422, f"the image's URL leads to the scheme {url.scheme!r}, expected http or https")
    address = await _resolve(url.host, url.port or _PORTS[url.scheme])
    headers = {"Host": url.netloc.decode(), "Accept-Encoding": "identity"}  # compressed bytes can be a bomb
    names = {"sni_hostname": url.host}  # the certificate must be the host's
    target = url.copy_with(host=str(address), userinfo=b"")
    async with client.stream("GET", target, headers=headers, extensions=names) as response:
        if response.has_redirect_location:
            return url.join(response.headers["Location"])
        if response.status_code != 200:
            raise RequestError(422, f"the image's URL answers with status {response.status_code}")
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > max_bytes:
                raise RequestError(413, f"the image has more than {max_bytes} bytes: use a smaller one")
        return bytes(body)


async def _resolve(host: str, port: int) -> IPv4Address | IPv6Address:
    """Return an address of a host whose addresses are all public."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ip_address(entry[4][0]) for entry in found]
    if not all(map(is_public, addresses)):
        raise RequestError(422, f"the image's URL leads to {host!r}, which is not a public address")
    return addresses[0]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address belongs to the public internet."""
    # Other IPv6 addresses, and those of 6to4, can contain a private IPv4 address.
    if isinstance(address, IPv6Address) and (address not in _GLOBAL_UNICAST or address.sixtofour):
        return False
    return address.is_global and not address.is_multicast
