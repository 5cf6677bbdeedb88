"""A server that answers ListObjectsV2 only. Local AWS would need minutes to store a million objects."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PREFIX = "cxr-nih/"
LISTED = 1_000_000
PAGE = 1000


def object_key(number: int) -> str:
    """The key of an object by its number, like the names of NIH's images. Keys sort as their numbers do."""
    return f"{PREFIX}images_{number // 10_000:03}/images/{number:08}_000.png"


@contextmanager
def listing_server() -> Iterator[str]:
    """The endpoint of a server that lists LISTED objects, PAGE of them in a response."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _ListObjectsV2)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _ListObjectsV2(BaseHTTPRequestHandler):
    """Answers with the fields of S3. The continuation token is the number of the next object."""

    protocol_version = "HTTP/1.1"  # keeps connections open, as S3 does
    wbufsize = -1  # sends headers and body together: alone, the body would wait for an acknowledgement

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("continuation-token", ["0"])[0])
        end = min(start + PAGE, LISTED)
        more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < LISTED else ""
        entries = "".join(
            f"<Contents><Key>{object_key(n)}</Key><LastModified>2020-11-14T21:40:50.000Z</LastModified>"
            f"<ETag>&quot;{n:032x}&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
            "<ChecksumType>FULL_OBJECT</ChecksumType><Size>457171</Size><StorageClass>STANDARD</StorageClass>"
            "</Contents>"
            for n in range(start, end)
        )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>images</Name><Prefix>{PREFIX}</Prefix>{more}<KeyCount>{end - start}</KeyCount>"
            f"<MaxKeys>{PAGE}</MaxKeys><EncodingType>url</EncodingType>"
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{entries}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
