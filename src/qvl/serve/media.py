"""Addresses of images and videos in a request → their bytes, if the server may read them at all.

Addresses in a request are untrusted: only files and hosts that were allowed when the server started are read,
and a name that points into a private network is refused after it was resolved, at every redirect anew. The connection
goes to the very address that was checked, so that a second answer of the name server can't change it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import stat
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx

from qvl.errors import ConfigError, MediaError
from qvl.inputs.image import A, read_source
from qvl.serve.settings import MediaPolicy
from qvl.units import format_bytes

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]
_DEFAULT_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)


class AllowedHost(NamedTuple):
    name: str  # lower case; ".example.org" stands for it and all below it
    port: int | None  # None: 80 and 443
    address: Address | None  # when the name is an address

    def matches(self, host: str, port: int) -> bool:
        if port != self.port and (self.port is not None or port not in _DEFAULT_PORTS.values()):
            return False
        if self.address is not None:
            return _address(host) == self.address
        return host == self.name.removeprefix(".") or (self.name[0] == "." and host.endswith(self.name))


class _Target(NamedTuple):
    scheme: str
    host: str
    port: int
    address: str
    raw_path: bytes


def read_allowed_host(text: str) -> AllowedHost:
    """`--allow-media-host`. Raises: ConfigError."""
    try:
        split = urllib.parse.urlsplit(f"//{text}")
        host, port = (split.hostname or "").rstrip(".").lower(), split.port
    except ValueError:
        host, port = "", None
    plain = re.fullmatch(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*", host) or _address(host)
    if not plain or split.path or split.query or split.username is not None:
        raise ConfigError(
            f"media host {text!r}: must be a name, .name for all below it, or an address, with :port if any"
        )
    return AllowedHost(host, port, _address(host))


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether an address is a host's of the public internet, looking through the forms that carry an IPv4 address.

    `ipaddress` knows the registries as they were when this Python was made, and counts what none of them names as
    public; so IPv6 is what IANA has given out for hosts, less the special ranges in it.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        # site-local is_global for ipaddress; so are all ranges without an entry
        if address not in _GLOBAL_UNICAST or address.is_site_local:
            return False
    if any(address.version == network.version and address in network for network in _SPECIAL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # IANA, IPv6 address space: all that is allocated so far
# IANA, IPv4 and IPv6 special-purpose address registries (2025): no place of an image, be they reachable or not
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24",
            "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
            "203.0.113.0/24", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20",
        ),
    )
)  # fmt: skip


async def resolve_name(host: str, port: int) -> list[str]:
    """Every address of a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class MediaReader:
    """Reads what the policy allows. Holds no connection between requests."""

    def __init__(self, policy: MediaPolicy, resolve: Resolve = resolve_name):
        self.policy = policy
        self._hosts = tuple(map(read_allowed_host, policy.hosts))
        self._paths = tuple(path.resolve() for path in policy.paths)
        self._resolve = resolve

    async def read(self, url: str, what: str) -> bytes:
        """what: "image" or "video", for messages. Raises: MediaError for all that isn't allowed or fails."""
        scheme = url[:10].partition(":")[0].lower()
        if scheme == "data":
            return await asyncio.to_thread(self._data, url, what)
        if scheme == "file":
            return await asyncio.to_thread(self._file, url, what)
        if scheme not in _DEFAULT_PORTS:
            raise MediaError(
                f"{_short(url)}: {A[what]} must be a data: URL, or http(s):// or file:// where that is allowed"
            )
        try:
            async with asyncio.timeout(self.policy.fetch_timeout_s):
                return await self._fetch(url, what)
        except TimeoutError as e:
            raise MediaError(f"{_short(url)}: didn't arrive within {self.policy.fetch_timeout_s:g} s") from e

    def _data(self, url: str, what: str) -> bytes:
        data, _ = read_source(url, what, self.policy.max_bytes)
        assert isinstance(data, bytes)
        return data

    def _file(self, url: str, what: str) -> bytes:
        refused = MediaError(
            f"{_short(url)}: the server reads no such file; a data: URL works (or start it with --allow-media-path)"
        )
        split = urllib.parse.urlsplit(url)
        if split.netloc not in ("", "localhost") or not self._paths:
            raise refused
        try:
            # links are followed before the check; the same refusal whether or not it exists tells nothing
            path = Path(urllib.parse.unquote(split.path)).resolve(strict=True)
            if not any(path.is_relative_to(root) for root in self._paths):
                raise refused
            # O_NOFOLLOW: a link put here since; O_NONBLOCK: a pipe would make us wait for ever
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise refused
                with open(handle, "rb", closefd=False) as file:
                    data = file.read(self.policy.max_bytes + 1)
            finally:
                os.close(handle)
        except (OSError, ValueError, RuntimeError) as e:
            raise refused from e
        self._check_size(len(data), url)
        return data

    def _check_size(self, count: int, url: str) -> None:
        if count > self.policy.max_bytes:
            raise MediaError(
                f"{_short(url)}: is larger than the limit of {format_bytes(self.policy.max_bytes)}"
            )

    async def _fetch(self, url: str, what: str) -> bytes:
        # trust_env: a proxy of the environment would resolve names itself
        async with httpx.AsyncClient(
            trust_env=False, follow_redirects=False, timeout=self.policy.fetch_timeout_s
        ) as client:
            for _ in range(self.policy.max_redirects + 1):
                target = await self._check(url, what)
                port = "" if target.port == _DEFAULT_PORTS[target.scheme] else f":{target.port}"
                host = f"[{target.host}]" if ":" in target.host else target.host
                request = client.build_request(
                    "GET",
                    httpx.URL(
                        scheme=target.scheme, host=target.address, port=target.port, raw_path=target.raw_path
                    ),
                    # identity: what is counted is what arrives, not what it might unpack to
                    headers={"Host": host + port, "Accept-Encoding": "identity", "User-Agent": "qvl"},
                    extensions={"sni_hostname": target.host},
                )
                try:
                    response = await client.send(request, stream=True)
                    try:
                        if response.status_code in _REDIRECTS:
                            url = _redirected(url, response.headers.get("location", ""))
                            continue
                        return await self._body(response, url)
                    finally:
                        await response.aclose()
                except (httpx.HTTPError, httpx.InvalidURL) as e:
                    raise MediaError(
                        f"{_short(url)}: can't be fetched ({type(e).__name__}: {e or 'no detail'})"
                    ) from e
        raise MediaError(f"{_short(url)}: more than {self.policy.max_redirects} redirects")

    async def _body(self, response: httpx.Response, url: str) -> bytes:
        if response.status_code != 200:
            raise MediaError(f"{_short(url)}: its host answers {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise MediaError(f"{_short(url)}: its host sent it compressed, which was not requested")
        length = response.headers.get("content-length", "")
        self._check_size(int(length) if length.isdecimal() else 0, url)
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            self._check_size(len(data), url)
        return bytes(data)

    async def _check(self, url: str, what: str) -> _Target:
        """Where to connect for an address, if that is allowed. Raises: MediaError."""
        try:
            split = urllib.parse.urlsplit(url)
            host = (split.hostname or "").rstrip(".").lower()
            host = host if host.isascii() else host.encode("idna").decode()
            port = split.port or _DEFAULT_PORTS.get(split.scheme, 0)
        except (ValueError, UnicodeError) as e:
            raise MediaError(f"{_short(url)}: is not an address ({e})") from e
        if split.scheme not in _DEFAULT_PORTS or not host or split.username is not None or "\\" in url:
            raise MediaError(f"{_short(url)}: is not an http or https address of {A[what]}")
        allowed = [entry for entry in self._hosts if entry.matches(host, port)]
        if not allowed:
            raise MediaError(
                f"{host}:{port}: the server fetches nothing from there; send the {what} as a data: URL "
                "(or start it with --allow-media-host)"
            )
        written_out = any(entry.address is not None for entry in allowed)
        try:
            addresses = [host] if written_out else await self._resolve(host, port)
        except OSError as e:
            raise MediaError(f"{host}: can't be resolved ({e.strerror or e})") from e
        if not addresses or not (written_out or _all_public(addresses)):
            raise MediaError(f"{host}: resolves to an address that is private or special; nothing is fetched")
        path = urllib.parse.quote(split.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if split.query:
            path += "?" + urllib.parse.quote(split.query, safe="/?%:@!$&'()*+,;=~-._")
        return _Target(split.scheme, host, port, addresses[0], path.encode())


def _redirected(url: str, location: str) -> str:
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError as e:
        raise MediaError(f"{_short(url)}: leads to {_short(location)}, which is not an address ({e})") from e


def _all_public(addresses: Sequence[str]) -> bool:
    """One private address among several is enough to refuse: which one is taken would be the attacker's choice."""
    parsed = [_address(text.partition("%")[0]) for text in addresses]
    return all(address is not None and is_public(address) for address in parsed)


def _short(url: str) -> str:
    url = "".join(char if char.isprintable() else "�" for char in url[:101])
    return url if len(url) <= 100 else url[:100] + "…"
