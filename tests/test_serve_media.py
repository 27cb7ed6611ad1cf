"""Where pictures of a request may come from: what wasn't allowed is never read, at no redirect and by no disguise."""

import asyncio
import ipaddress
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import qvl
from qvl.errors import ConfigError, MediaError
from qvl.serve.media import MediaReader, is_public, read_allowed_host
from qvl.serve.settings import MediaPolicy
from serve_live import asking, live, picture, png


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        status, headers, body = self.server.pages.get(self.path, (404, {}, b"none"))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if callable(body):
            body(self.wfile)
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    server.daemon_threads = True
    server.asked, server.pages = [], {"/a.png": (200, {"Content-Type": "image/png"}, png())}
    server.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def read(url, resolved=None, **policy):
    """resolved: what the name server says."""

    async def resolve(host, port):
        if resolved is None:
            raise OSError(-2, "Name or service not known")
        return resolved

    return asyncio.run(MediaReader(MediaPolicy(**policy), resolve).read(url, "image"))


def refused(words, url, *args, **policy):
    with pytest.raises(MediaError, match=words):
        read(url, *args, **policy)


# addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1",
        "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1", "2001:0:7f00:1::",
        # site-local, documentation, segment routing, discard, local NAT64, embedded IPv4, relays, not allocated
        "fec0::1", "feff::1", "3fff::1", "5f00::1", "100::1", "100:0:0:1::1", "64:ff9b:1::1", "::7f00:1", "4000::1",
        "192.88.99.1", "192.0.0.9", "2001:20::1", "2002:c058:6301::1", "64:ff9b::c000:0201",
    ],
)  # fmt: skip
def test_an_address_of_no_public_host_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_a_public_address_is_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "text", ["", "http://a.b", "a.b/c", "user@a.b", "a b", "a.b:x", "*.a.b", "a..b", "a.b:99999", "[::1"]
)
def test_a_host_that_cannot_be_is_refused_at_the_start(text):
    with pytest.raises(ConfigError, match="media host"):
        read_allowed_host(text)


@pytest.mark.parametrize(
    ("allowed", "host", "port", "matches"),
    [
        ("example.org", "example.org", 443, True),
        ("example.org", "www.example.org", 443, False),
        ("example.org", "example.org.evil.net", 443, False),
        ("example.org", "example.org", 8080, False),
        ("example.org:8080", "example.org", 8080, True),
        ("example.org:8080", "example.org", 443, False),
        (".example.org", "www.example.org", 80, True),
        (".example.org", "example.org", 80, True),
        (".example.org", "evilexample.org", 80, False),
        ("10.0.0.5", "10.0.0.5", 80, True),
        ("10.0.0.5", "10.0.0.50", 80, False),
        ("[::1]:81", "::1", 81, True),
    ],
)
def test_an_allowed_host_matches_itself_alone(allowed, host, port, matches):
    assert read_allowed_host(allowed).matches(host, port) is matches


# fetching


def test_nothing_is_fetched_unless_its_host_is_allowed(web):
    refused("--allow-media-host", f"{web.base}/a.png")
    refused("--allow-media-host", f"{web.base}/a.png", hosts=("example.org",))
    assert web.asked == []


def test_an_address_written_out_is_fetched(web):
    assert read(f"{web.base}/a.png", hosts=(f"127.0.0.1:{web.server_port}",)) == png()


def test_a_public_name_is_fetched_from_the_address_that_was_checked(web, monkeypatch):
    from qvl.serve import media

    monkeypatch.setattr(media, "is_public", lambda address: str(address) == "127.0.0.1")
    host = f"pictures.example:{web.server_port}"
    assert read(f"http://{host}/a.png", ["127.0.0.1"], hosts=(host,)) == png()
    assert web.asked == [("/a.png", host)]


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["169.254.169.254"], ["fe80::1%eth0"], []]
)
def test_an_allowed_name_that_resolves_to_a_private_address_is_refused(addresses):
    refused("private", "http://pictures.example/a.png", addresses, hosts=("pictures.example",))


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "017700000001", "localhost"])
def test_an_address_in_disguise_is_refused(host, web):
    """Even when the disguise itself was allowed; getaddrinfo understands all of these."""
    url = f"http://{host}:{web.server_port}/a.png"
    reader = MediaReader(MediaPolicy(hosts=(f"{host}:{web.server_port}",)))
    with pytest.raises(MediaError, match=r"private|resolved"):
        asyncio.run(reader.read(url, "image"))
    assert web.asked == []


def test_redirects_are_followed_within_what_is_allowed(web):
    web.pages["/moved"] = (302, {"Location": "/a.png"}, b"")
    assert read(f"{web.base}/moved", hosts=(f"127.0.0.1:{web.server_port}",)) == png()


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://10.0.0.1/secret", "--allow-media-host"),
        ("http://169.254.169.254/latest/meta-data", "--allow-media-host"),
        ("http://rebound.example/x", "private"),
        ("file:///etc/hostname", "not an http"),
        ("ftp://127.0.0.1/x", "not an http"),
        ("http://[", "not an address"),
        ("", "redirects"),
    ],
)
def test_a_redirect_is_checked_like_the_first_address(web, location, words):
    web.pages["/moved"] = (302, {"Location": location}, b"")
    hosts = (f"127.0.0.1:{web.server_port}", "rebound.example")
    refused(words, f"{web.base}/moved", ["10.1.2.3"], hosts=hosts)


def test_redirects_end(web):
    web.pages["/loop"] = (301, {"Location": "/loop"}, b"")
    refused("more than 3 redirects", f"{web.base}/loop", hosts=(f"127.0.0.1:{web.server_port}",))
    assert len(web.asked) == 4


@pytest.mark.parametrize(
    "url",
    ["http://", "http:///x", "http://user:pw@127.0.0.1/a", "http://a.b\\@127.0.0.1/", "http://[::1", "http://a:b/", "HTTP://"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url):
    refused("not an", url, ["8.8.8.8"], hosts=("127.0.0.1", "a.b"))


def test_a_large_body_is_cut_off_whether_or_not_it_says_its_length(web):
    hosts = (f"127.0.0.1:{web.server_port}",)
    web.pages["/told"] = (200, {"Content-Length": "999999"}, b"x")
    web.pages["/untold"] = (200, {}, b"x" * 300_000)
    for path in ("/told", "/untold"):
        refused("larger than the limit of 97.7 KiB", web.base + path, hosts=hosts, max_bytes=100_000)


def test_a_compressed_body_is_refused(web):
    web.pages["/zip"] = (200, {"Content-Encoding": "gzip"}, b"x")
    refused("compressed", f"{web.base}/zip", hosts=(f"127.0.0.1:{web.server_port}",))


def test_a_slow_host_is_left_in_time(web):
    import time

    def drip(out):
        for _ in range(100):
            out.write(b"x")
            out.flush()
            time.sleep(0.05)

    web.pages["/slow"] = (200, {}, drip)
    began = time.monotonic()
    refused("within 0.3 s", f"{web.base}/slow", hosts=(f"127.0.0.1:{web.server_port}",), fetch_timeout_s=0.3)
    assert time.monotonic() - began < 3


def test_an_answer_other_than_200_is_told(web):
    refused("answers 404", f"{web.base}/none", hosts=(f"127.0.0.1:{web.server_port}",))


def test_a_proxy_of_the_environment_is_not_used(web, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert read(f"{web.base}/a.png", hosts=(f"127.0.0.1:{web.server_port}",)) == png()


# files


def test_a_file_is_read_only_below_an_allowed_folder(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "a b.png").write_bytes(b"inside")
    (outside / "s.png").write_bytes(b"secret")
    (inside / "link.png").symlink_to(outside / "s.png")
    (inside / "folder").symlink_to(outside)
    os.mkfifo(inside / "pipe")
    policy = {"paths": (inside,)}
    assert read(f"file://{inside}/a%20b.png", **policy) == b"inside"
    assert read(f"file://localhost{inside}/a%20b.png", **policy) == b"inside"
    for url in (
        f"file://{outside}/s.png",
        f"file://{inside}/../out/s.png",
        f"file://{inside}/%2e%2e/out/s.png",
        f"file://{inside}/link.png",
        f"file://{inside}/folder/s.png",
        f"file://{inside}/pipe",
        f"file://{inside}",
        f"file://{inside}/none.png",
        f"file://{inside}x/a.png",
        f"file://elsewhere{inside}/a%20b.png",
        f"file://{inside}/a%00.png",
        "file:///etc/hostname",
        "file:///proc/self/environ",
        "file:",
    ):
        refused("reads no such file", url, **policy)
    refused("reads no such file", f"file://{inside}/a%20b.png")
    refused("larger than", f"file://{inside}/a%20b.png", **policy, max_bytes=3)


def test_a_data_url_is_measured():
    assert read("data:image/png;base64,QUJD") == b"ABC"
    assert read("DATA:,ABC") == b"ABC"
    refused("takes", "data:image/png;base64," + "QUJD" * 100, max_bytes=100)


def test_the_server_fetches_for_a_request_and_tells_refusals(web, tiny_checkpoint, tmp_path):
    (tmp_path / "p.png").write_bytes(png())
    policy = MediaPolicy(hosts=(f"127.0.0.1:{web.server_port}",), paths=(tmp_path,))
    with live(qvl.load(tiny_checkpoint, max_num_seqs=2), media=MediaReader(policy)) as server:
        sent = server.chat(messages=asking("x", picture())).json()["choices"][0]["message"]["content"]
        for url in (f"{web.base}/a.png", f"file://{tmp_path}/p.png"):
            answer = server.chat(messages=asking("x", picture(url)))
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == sent
        for url in (f"{web.base}/none.png", "file:///etc/hostname"):
            assert server.chat(messages=asking("x", picture(url))).status_code == 400
        server.wait_until_idle()
