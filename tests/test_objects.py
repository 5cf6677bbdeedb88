"""classifier/objects.py: objects that obstore reads, and all that it leaves to boto3."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
from classifier import objects

BODY, ETAG = b"x" * 100, '"0"'
ERRORS = {
    "NoSuchKey": 404,
    "NoSuchBucket": 404,
    "AccessDenied": 403,
    "InvalidObjectState": 403,
    "InvalidRequest": 400,
    "SlowDown": 503,
}


class S3(BaseHTTPRequestHandler):
    """Answers a key that is the code of an error with that error, `short` and `reset` with a broken body."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        key = unquote(self.path).removeprefix("/images/")
        self.asked.append(key)
        body = f"<Error><Code>{key}</Code></Error>".encode() if key in ERRORS else BODY
        self.send_response(ERRORS.get(key, 200))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 02 Jan 2023 00:00:00 GMT")
        self.send_header("ETag", ETAG)
        if key != "reset":
            self.end_headers()
        self.wfile.write(b"" if key == "reset" else body[:50] if key == "short" else body)
        self.close_connection = key in ("reset", "short")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The keys that were asked of S3."""
    S3.asked = []
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    objects._store.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), S3) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield S3.asked
        server.shutdown()
    objects._store.cache_clear()


@pytest.mark.parametrize("key", ["a/x.png", "a b+c/é.png", "a%20b", "#?&=@:$,;!*'()", 'a|b{}[]^`<>"', " a "])
def test_an_object_is_read_by_its_key(asked: list[str], key: str) -> None:
    assert objects.read("images", key, 100) == objects.Object(BODY, ETAG)
    assert asked == [key]


@pytest.mark.parametrize("key", ["a//b", "a/", "/a", "a/./b", "a/../b", "a\nb"])
def test_a_key_that_it_cannot_ask_for_is_left_to_boto3(asked: list[str], key: str) -> None:
    with pytest.raises(objects.NotRead):
        objects.read("images", key, 100)


@pytest.mark.parametrize("bucket", ["a b", "a\nb"])
def test_a_bucket_that_cannot_be_is_left_to_boto3(asked: list[str], bucket: str) -> None:
    with pytest.raises(objects.NotRead):
        objects.read(bucket, "a", 100)


def test_a_large_object_is_not_read(asked: list[str]) -> None:
    assert objects.read("images", "large", 99) == 100


@pytest.mark.parametrize("key", [*ERRORS, "short", "reset"])
def test_every_failure_is_left_to_boto3_at_once(asked: list[str], key: str) -> None:
    with pytest.raises(objects.NotRead):
        objects.read("images", key, 100)
    assert asked == [key]
