"""The job creator on moto: what it sends, what it refuses, and how runs continue and collide."""

import csv
import gzip
import hashlib
import io
import json
import random
import socket
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote_plus

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError
from botocore.response import StreamingBody
from job_creator import handler
from job_creator.events import EventError, Request
from job_creator.sources import MAX_ROW, Sources, rows, s3_client
from moto.core.botocore_stubber import MockRawResponse
from moto.kinesis.models import KinesisBackend
from runs import jobs, layout
from runs.predictions import Prediction
from runs.run import Run
from runs.table import RunTable
from support import BUCKET, PREFIX, STREAM, TABLE, begin_run, client, events_noted, table_items

MODEL = {"model": "demo:1.0.0", "model_sha256": "ab" * 32}
RUN_FIELDS = {
    **MODEL,
    "labels": [{"name": "abnormal", "threshold": Decimal("0.5")}],
    "settings": {"shards": 2},
}


def job_creator(**options: Any) -> handler.JobCreator:
    """A job creator with these fields; `s3` and `dynamodb` replace the clients that it is made with."""
    bucket = options.get("bucket", BUCKET)
    fields: dict[str, Any] = {
        "sources": Sources(options.pop("s3", None) or s3_client(Config()), bucket, PREFIX),
        "kinesis": boto3.client("kinesis"),
        "table": RunTable(options.pop("dynamodb", None) or boto3.client("dynamodb"), TABLE),
        "events": events_noted([]),
        "bucket": bucket,
        "prefix": PREFIX,
        "stream": STREAM,
        "images_per_job": 32,
        "run_fields": RUN_FIELDS,
    }
    return handler.JobCreator(**fields | options)


def create(event: Any, remaining_ms: int = 900_000, **options: Any) -> dict[str, Any]:
    """Invokes the job creator."""
    return job_creator(**options)(event, lambda: remaining_ms)


class Answered(NamedTuple):
    status_code: int


def put(*names: str, body: bytes = b"") -> None:
    for name in names:
        client("s3").put_object(Bucket=BUCKET, Key=PREFIX + name, Body=body)


def put_index(*names: str, column: str = "Key") -> None:
    put("index.csv", body="\n".join([f"label,{column}", *(f"1,{PREFIX}{name}" for name in names)]).encode())


def sent() -> list[dict[str, Any]]:
    """Every job on the stream."""
    kinesis = client("kinesis")
    found: list[dict[str, Any]] = []
    for shard in kinesis.list_shards(StreamName=STREAM)["Shards"]:
        iterator = kinesis.get_shard_iterator(
            StreamName=STREAM, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while (page := kinesis.get_records(ShardIterator=iterator))["Records"]:
            found += [json.loads(record["Data"]) for record in page["Records"]]
            iterator = page["NextShardIterator"]
    return found


def sent_keys() -> list[str]:
    return [key for job in sent() for key in job["Keys"]]


def run_item(run_id: str) -> dict[str, Any]:
    return table_items()[layout.RUNS, run_id]


def set_state(run_id: str, state: str) -> None:
    boto3.resource("dynamodb").Table(TABLE).update_item(
        Key=layout.run_key(run_id),
        UpdateExpression="SET #state = :state",
        ExpressionAttributeNames={"#state": "state"},
        ExpressionAttributeValues={":state": state},
    )


def remove(run_id: str, *fields: str) -> None:
    boto3.resource("dynamodb").Table(TABLE).update_item(
        Key=layout.run_key(run_id), UpdateExpression=f"REMOVE {', '.join(fields)}"
    )


def score(run_id: str, *keys: str) -> None:
    """What the classifier writes."""
    done = [Prediction(key, {"abnormal": Decimal("0.5")}) for key in keys]
    RunTable(client("dynamodb"), TABLE).write(run_id, run_item(run_id)["uid"], done, {}, MODEL)


pytestmark = pytest.mark.usefixtures("aws")


class TestSources:
    def test_the_default_lists_the_stacks_prefix(self) -> None:
        put("a.png", "b/c.jpg")
        client("s3").put_object(Bucket=BUCKET, Key="elsewhere/d.png")
        assert create({"RunId": "r"}) == {"RunId": "r", "ImageCount": 2, "JobCount": 1}
        keys = [f"{PREFIX}a.png", f"{PREFIX}b/c.jpg"]
        assert sent() == [{"RunId": "r", "RunUid": run_item("r")["uid"], "Bucket": BUCKET, "Keys": keys}]

    def test_a_prefix_lists_what_is_below_it(self) -> None:
        put("1/a.png", "2/b.png")
        create({"RunId": "r", "Prefix": f"{PREFIX}2/"})
        assert sent_keys() == [f"{PREFIX}2/b.png"]

    def test_an_index_gives_its_keys_each_once_whatever_the_bucket_holds(self) -> None:
        put_index("b.png", "a.png", "b.png")
        assert create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"})["ImageCount"] == 2
        assert sent_keys() == [f"{PREFIX}b.png", f"{PREFIX}a.png"]

    def test_an_index_with_a_byte_order_mark_and_windows_lines(self) -> None:
        put("index.csv", body=f'\ufeffKey,note\r\n"{PREFIX}a, b.png",x\r\n'.encode())
        create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"})
        assert sent_keys() == [f"{PREFIX}a, b.png"]

    def test_an_index_with_quotes_line_breaks_and_empty_lines_in_it(self) -> None:
        body = 'note,Key,size\n\n"a,\nb",cxr-nih/plain.png,1\n\n,"cxr-nih/a ""b"",\nc.png"\n'
        put("index.csv", body=body.encode())
        create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"})
        assert sent_keys() == [f"{PREFIX}plain.png", f'{PREFIX}a "b",\nc.png']

    def test_an_index_is_read_as_a_csv_reader_reads_it(self) -> None:
        for seed in range(300):
            rng = random.Random(seed)
            odd = rng.choice(["", '",', "\n"])
            names = [
                "".join(rng.choices("abc/" + odd, k=rng.randrange(4))) for _ in range(rng.randrange(1, 9))
            ]
            if seed % 3:
                names.sort()
            file = io.StringIO(newline="")
            writer = csv.writer(file, lineterminator=rng.choice(["\n", "\r\n"]))
            width = rng.randrange(3)
            table = [["x"] * width + [f"p/{name}"] + ["y"] * rng.randrange(2) for name in names]
            writer.writerows([[*"nm"[:width], "Key"], *table, []])
            text = file.getvalue()
            keys = [f"p/{name}" for name in names]
            assert [key for _, key in rows(io.StringIO(text, newline=""))] == keys, seed

    @pytest.mark.parametrize("names", ["aab", "aba", "abb", "cabcabc"])
    def test_an_index_that_repeats_keys_wherever_they_stand(self, names: str) -> None:
        put_index(*(f"{name}.png" for name in names))
        create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"})
        assert sent_keys() == [f"{PREFIX}{name}.png" for name in dict.fromkeys(names)]

    def test_a_list_gives_its_keys_each_once(self) -> None:
        keys = [f"{PREFIX}b.png", f"{PREFIX}a.png", f"{PREFIX}b.png"]
        assert create({"RunId": "r", "Keys": keys})["ImageCount"] == 2
        assert sent_keys() == [f"{PREFIX}b.png", f"{PREFIX}a.png"]

    def test_what_is_surely_no_image_is_skipped(self) -> None:
        put(
            "a.png", "folder/", "x.csv", "x.JSON", "x.txt", "x.xml", "x.zip", "x.gz", "README.md", "no-suffix"
        )
        create({"RunId": "r"})
        assert sent_keys() == [f"{PREFIX}a.png", f"{PREFIX}no-suffix"]

    @pytest.mark.parametrize("source", [{}, {"IndexKey": f"{PREFIX}index.csv"}])
    def test_job_count_bounds_the_images_not_the_records(self, source: dict[str, Any]) -> None:
        put_index(*(f"{i}.png" for i in range(50)))
        put(*(f"{i}.png" for i in range(50)))
        answer = create({"RunId": "r", "JobCount": 40, **source})
        assert answer == {"RunId": "r", "ImageCount": 40, "JobCount": 2}
        assert len(sent_keys()) == 40


INVENTORY = f"{PREFIX}inventory/manifest.json"


def inventory(
    *parts: Any, schema: str = "Bucket, Key, Size", source: str = BUCKET, form: str = "CSV"
) -> dict[str, bytes]:
    """Key -> object of an S3 Inventory. A part is a list of rows, or its bytes."""
    objects = {}
    for number, part in enumerate(parts):
        if not isinstance(part, bytes):
            file = io.StringIO()
            csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(part)
            part = gzip.compress(file.getvalue().encode(), mtime=0)
        objects[f"{PREFIX}inventory/data/{number}.csv.gz"] = part
    manifest = {
        "sourceBucket": source,
        "destinationBucket": "arn:aws:s3:::others",
        "version": "2016-11-30",
        "fileFormat": form,
        "fileSchema": schema,
        "files": [{"key": key, "size": len(body), "MD5checksum": ""} for key, body in objects.items()],
    }
    return objects | {INVENTORY: json.dumps(manifest).encode()}


def put_inventory(*parts: Any, **options: Any) -> None:
    for key, body in inventory(*parts, **options).items():
        client("s3").put_object(Bucket=BUCKET, Key=key, Body=body)


class TestInventory:
    def test_the_keys_of_all_parts_decoded_each_once(self) -> None:
        names = ["a.png", "b c+d%é.png", "e/f.png", "a.png", "index.csv", "inventory/manifest.checksum"]
        rows = [[BUCKET, quote_plus(PREFIX + name, safe="/"), "1"] for name in names]
        put_inventory(rows[:2], [], [*rows[2:], [BUCKET, "elsewhere/g.png", "1"]])
        assert create({"RunId": "r", "IndexKey": INVENTORY})["ImageCount"] == 3
        assert sent_keys() == [f"{PREFIX}a.png", f"{PREFIX}b c+d%é.png", f"{PREFIX}e/f.png"]
        assert create({"RunId": "r", "IndexKey": INVENTORY})["ImageCount"] == 3
        assert create({"RunId": "two", "IndexKey": INVENTORY, "JobCount": 2})["ImageCount"] == 2

    def test_columns_in_another_order_and_only_latest_versions(self) -> None:
        rows = [
            ["true", f"{PREFIX}a.png", "v2", "false"],
            ["false", f"{PREFIX}b.png", "v1", "false"],
            ["true", f"{PREFIX}c.png", "v1", "true"],
        ]
        put_inventory(rows, schema="IsLatest, Key, VersionId, IsDeleteMarker")
        create({"RunId": "r", "IndexKey": INVENTORY})
        assert sent_keys() == [f"{PREFIX}a.png"]

    @pytest.mark.parametrize(
        ("parts", "options", "message"),
        [
            ([[]], {"form": "Parquet"}, "IndexKey, fileFormat: expected CSV"),
            ([[]], {"schema": "Bucket, Name"}, "IndexKey, fileFormat: expected CSV with a column Key"),
            (
                [[]],
                {"source": "secret"},
                "IndexKey, sourceBucket: expected an inventory of the bucket",
            ),
            ([[[BUCKET, f"{PREFIX}secret.png"]]], {}, r"IndexKey, files\[0\], line 1: expected 3 columns"),
            ([[], b"no gzip"], {}, r"IndexKey, files\[1\]: expected a CSV with gzip"),
            ([gzip.compress(b"x" * 99_999)[:-9]], {}, r"IndexKey, files\[0\]: expected a CSV with gzip"),
            (
                [gzip.compress(bytes(MAX_ROW + 1))],
                {},
                r"IndexKey, files\[0\], line 1: expected a row of less",
            ),
            ([[]], {}, "IndexKey: no image there"),
        ],
    )
    def test_it_is_refused_by_its_field_and_leaves_nothing(
        self, parts: list[Any], options: dict[str, str], message: str
    ) -> None:
        put_inventory(*parts, **options)
        with pytest.raises(EventError, match=f"^{message}") as refused:
            create({"RunId": "r", "IndexKey": INVENTORY})
        assert "secret" not in str(refused.value)
        assert (sent(), table_items()) == ([], {})

    @pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"files": 3}', b"[" * 99_999])
    def test_a_manifest_of_something_else(self, manifest: bytes) -> None:
        client("s3").put_object(Bucket=BUCKET, Key=INVENTORY, Body=manifest)
        with pytest.raises(
            EventError, match=r"^IndexKey: expected the manifest.json of an S3 Inventory, with"
        ):
            create({"RunId": "r", "IndexKey": INVENTORY})

    def test_parts_elsewhere_are_not_read(self) -> None:
        body = inventory([[BUCKET, f"{PREFIX}a.png", "1"]])[INVENTORY].replace(PREFIX.encode(), b"elsewhere/")
        client("s3").put_object(Bucket=BUCKET, Key=INVENTORY, Body=body)
        with pytest.raises(EventError, match=r"^IndexKey, files\[0\].key: expected a string .* begins with"):
            create({"RunId": "r", "IndexKey": INVENTORY})
        put_inventory([[BUCKET, f"{PREFIX}a.png", "1"]])
        client("s3").delete_object(Bucket=BUCKET, Key=f"{PREFIX}inventory/data/0.csv.gz")
        with pytest.raises(EventError, match=r"^IndexKey, files\[0\]: expected .* S3 answers NoSuchKey"):
            create({"RunId": "r", "IndexKey": INVENTORY})

    @pytest.mark.examples(many=50_000)
    def test_memory_does_not_grow_with_the_keys(self, examples: int) -> None:
        def peak(keys: int) -> int:
            rows = ([BUCKET, f"{PREFIX}{number % keys:08}.png", "1"] for number in range(keys))
            objects = inventory(*(list(islice(rows, keys // 10)) for _ in range(10)))

            def get_object(**options: Any) -> Any:
                body = objects[options["Key"]]
                return {"ETag": "e", "Body": StreamingBody(io.BytesIO(body), len(body))}

            sources = Sources(SimpleNamespace(get_object=get_object), BUCKET, PREFIX)  # type: ignore[arg-type]
            tracemalloc.start()
            found = sources.keys(Request("r", "IndexKey", INVENTORY))
            assert all(key == f"{PREFIX}{number:08}.png" for number, key in enumerate(found))
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return most

        # 0.02 MiB were seen. The keys alone take 3.
        assert peak(examples) - peak(examples // 10) < 2 * 2**20


class TestUrlEncodedIndex:
    def test_keys_that_are_there_only_decoded_get_a_hint(self) -> None:
        put("a b.png")
        for key in ("a+b.png", "a%20b.png"):
            put_index("plain.png", key)
            with pytest.raises(
                EventError, match=r"^IndexKey, line 3, Key: is URL-encoded; expected keys as they"
            ):
                create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"})
        put("index.csv", body=b"Key\n" + quote_plus(PREFIX).encode() + b"a.png\n")
        with pytest.raises(EventError, match=r"^IndexKey, line 2, Key: is URL-encoded"):
            create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"})
        assert (sent(), table_items()) == ([], {})

    def test_keys_that_are_there_as_they_are_or_not_at_all_are_taken(self) -> None:
        put("a b.png", "a+b.png")
        put_index("a+b.png", "c%20d.png")
        create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"})
        assert sent_keys() == [f"{PREFIX}a+b.png", f"{PREFIX}c%20d.png"]


class TestListing:
    """Pages of a listing, read through botocore. S3 writes the first four so; the others are XML, too."""

    DATE = "<LastModified>2020-11-14T21:40:50.000Z</LastModified>"

    @pytest.mark.parametrize(
        ("objects", "names"),
        [
            ("", []),
            (f"<Contents><Key>{PREFIX}a.png</Key>{DATE}</Contents>" * 2, ["a.png", "a.png"]),
            (f"<Contents><Key>{PREFIX}%C3%A9+%2B%26%3C%0A</Key>{DATE}</Contents>", ["é +&<\n"]),
            (
                f"<Contents><Key>{PREFIX}a.png</Key><LastModified>not read</LastModified></Contents>",
                ["a.png"],
            ),
            (
                f"<Contents><Key>{PREFIX}a&amp;b</Key></Contents><Contents><Key>{PREFIX}c</Key></Contents>",
                ["a&b", "c"],
            ),
            (
                f"<Contents><Size>1</Size><Key>{PREFIX}a</Key></Contents><Contents><Key>{PREFIX}b</Key></Contents>",
                ["a", "b"],
            ),
            (
                f"<Contents><Key>{PREFIX}a</Key></Contents>\n<Contents><Key>{PREFIX}b</Key></Contents>",
                ["a", "b"],
            ),
        ],
    )
    def test_every_key_of_a_page(self, objects: str, names: list[str]) -> None:
        assert list(Sources(s3_that_lists(objects), BUCKET, PREFIX)._listed(PREFIX)) == [
            PREFIX + n for n in names
        ]

    def test_where_to_go_on_is_seen_wherever_it_stands(self) -> None:
        objects = f"<Contents><Key>{PREFIX}a</Key></Contents>"
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>".format
        s3 = s3_that_lists(objects + more(1) + objects, more(2) + objects, objects + more(3), objects)
        assert list(Sources(s3, BUCKET, PREFIX)._listed(PREFIX)) == [f"{PREFIX}a"] * 5


class TestRefused:
    @pytest.mark.parametrize(
        ("event", "names"),
        [
            ("all", "expected a JSON object"),
            ({}, "RunId: expected"),
            ({"RunId": ""}, "RunId: expected"),
            ({"RunId": 7}, "RunId: expected"),
            ({"RunId": "-leads"}, "RunId: expected"),
            ({"RunId": "a b"}, "RunId: expected"),
            ({"RunId": "a#b"}, "RunId: expected"),
            ({"RunId": "r\n"}, "RunId: expected"),
            ({"RunId": "r" * 129}, "RunId: expected"),
            ({"RunId": "r", "JobCount": 0}, "JobCount: expected"),
            ({"RunId": "r", "JobCount": -1}, "JobCount: expected"),
            ({"RunId": "r", "JobCount": "ten"}, "JobCount: expected"),
            ({"RunId": "r", "JobCount": 1.5}, "JobCount: expected"),
            ({"RunId": "r", "JobCount": True}, "JobCount: expected"),
            ({"RunId": "r", "JobCount": None}, "JobCount: expected"),
            ({"RunId": "r", "JobCount": 10**30}, "JobCount: expected"),
            ({"RunId": "r", "Limit": 3}, "Limit: unknown field"),
            ({"RunId": "r", "cxr-nih/patient-7.png": 3}, "the event: unknown field"),
            ({"RunId": "r", "Prefix": f"{PREFIX}\ud800"}, "Prefix: expected"),
            ({"RunId": "r", "Keys": [f"{PREFIX}\udfff.png"]}, r"Keys\[0\]: expected"),
            (
                {"RunId": "r", "Prefix": PREFIX, "Keys": [f"{PREFIX}a"]},
                "Prefix and Keys: expected one source",
            ),
            ({"RunId": "r", "Prefix": ""}, "Prefix: expected"),
            ({"RunId": "r", "Prefix": "elsewhere/"}, "Prefix: expected"),
            ({"RunId": "r", "Prefix": f"{PREFIX}nothing-here/"}, "Prefix: no image there"),
            ({"RunId": "r", "IndexKey": f"{PREFIX}none.csv"}, "IndexKey: expected a CSV in the bucket"),
            ({"RunId": "r", "IndexKey": "elsewhere/index.csv"}, "IndexKey: expected"),
            ({"RunId": "r", "IndexKey": ["a"]}, "IndexKey: expected"),
            ({"RunId": "r", "Keys": []}, "Keys: expected"),
            ({"RunId": "r", "Keys": "a"}, "Keys: expected"),
            ({"RunId": "r", "Keys": [f"{PREFIX}a", 7]}, r"Keys\[1\]: expected"),
            ({"RunId": "r", "Keys": [f"{PREFIX}a", "b"]}, r"Keys\[1\]: expected"),
            ({"RunId": "r", "Keys": [PREFIX + "a" * 1024]}, r"Keys\[0\]: expected"),
            ({"RunId": "r", "Keys": [f"{PREFIX}notes.txt"]}, "Keys: no image there"),
        ],
    )
    def test_an_event_is_refused_by_its_field_and_leaves_nothing(self, event: Any, names: str) -> None:
        put("a.png")
        with pytest.raises(EventError, match=f"^{names}"):
            create(event)
        assert sent() == []
        assert table_items() == {}

    @pytest.mark.parametrize(
        ("body", "names"),
        [
            (b"", "IndexKey: expected a CSV with a column Key"),
            (b"key\ncxr-nih/a.png\n", "IndexKey: expected a CSV with a column Key"),
            (b"Key\n", "IndexKey: no image there"),
            (b"Key\n" + b"cxr-nih/a.png\n" * 40_000 + b"elsewhere/secret.png\n", "IndexKey, line 40002, Key"),
            (b"a,Key\ncxr-nih/a.png\n", "IndexKey, line 2, Key: expected"),
            (b'a,Key\n\n"1\n2",cxr-nih/a.png\n3,b\n', "IndexKey, line 5, Key: expected"),
            (b"Key\ncxr-nih/" + "é".encode() * 600 + b"\n", "IndexKey, line 2, Key: expected"),
            (b"Key\n\xff\xfe\n", "IndexKey: expected a well-formed CSV in UTF-8"),
            (b'Key\n"cxr-nih/a.png\ncxr-nih/b.png\n', "IndexKey: expected a well-formed CSV"),
        ],
    )
    def test_an_index_is_refused_before_its_first_job_is_sent(self, body: bytes, names: str) -> None:
        put("index.csv", body=body)
        with pytest.raises(EventError, match=f"^{names}") as refused:
            create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"})
        assert "secret" not in str(refused.value)
        assert sent() == []
        assert table_items() == {}

    @pytest.mark.parametrize(
        ("head", "repeated", "line"),
        [
            (b"", b"x", 1),
            (b"", b'"x\n",', 1),
            (b"Key\n", b"x", 2),
            (b"Key,note\ncxr-nih/a.png,\ncxr-nih/b.png,", b"x", 3),
            (b"note,Key\n" + b"x,cxr-nih/a.png\n" * 40_000, b"x", 40_002),
            (b'note,Key\r\n"a\nb",cxr-nih/a.png\r\n', b"x", 4),
            (b"Key,note\ncxr-nih/a.png,", b'"x\n",', 2),
        ],
    )
    def test_an_index_without_a_line_end_does_not_fill_the_memory(
        self, head: bytes, repeated: bytes, line: int
    ) -> None:
        index = io.BytesIO(head + repeated * 2**22)
        text = io.TextIOWrapper(index, encoding="utf-8-sig", newline="")
        with pytest.raises(EventError, match=f"^IndexKey, line {line}: expected a row of less than"):
            list(rows(text))
        assert index.tell() < len(head) + 2 * MAX_ROW

    @pytest.mark.parametrize("source", [{}, {"IndexKey": f"{PREFIX}index.csv"}])
    def test_a_bucket_that_is_not_there(self, source: dict[str, str]) -> None:
        with pytest.raises(EventError, match=r"there is no gone|in the bucket gone"):
            create({"RunId": "r", **source}, bucket="gone")
        assert table_items() == {}

    def test_an_index_that_is_replaced_while_it_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        put_index("a.png")
        s3 = boto3.client("s3")
        get_object = s3.get_object

        def replaced_after(**options: Any) -> Any:
            answer = get_object(**options)
            put_index("b.png")
            return answer

        monkeypatch.setattr(s3, "get_object", replaced_after)
        with pytest.raises(EventError, match=r"^IndexKey: .*PreconditionFailed"):
            create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"}, s3=s3)
        assert sent() == []
        assert table_items() == {}


class TestRuns:
    def test_a_run_says_what_it_is_made_of_and_what_to_expect(self) -> None:
        put("a.png", "b.png")
        create({"RunId": "r", "JobCount": 5})
        run = run_item("r")
        assert run["source"] == {"kind": "Prefix", "value": PREFIX, "job_count": 5}
        assert run["state"] == "SCORING"
        assert run["expected"] == 2
        assert {name: run[name] for name in MODEL} == MODEL

    def test_the_same_event_continues_the_run_and_says_so_in_its_jobs(self) -> None:
        put("a.png")
        create({"RunId": "r"})
        first = run_item("r")
        create({"RunId": "r"})
        assert [job.get("Continued", False) for job in sent()] == [False, True]
        resumed = {"listed_at": "", "resumed_at": "", "resumed_with": 0}
        assert run_item("r") | resumed == first | resumed

    def test_a_run_whose_images_all_have_a_score_sends_nothing(self) -> None:
        put("a.png", "b.png")
        create({"RunId": "r"})
        score("r", f"{PREFIX}a.png", f"{PREFIX}b.png")
        set_state("r", "COMPLETE")
        before = table_items(), sent()
        assert create({"RunId": "r"}) == {"RunId": "r", "ImageCount": 2, "JobCount": 0}
        assert (table_items(), sent()) == before
        put("c.png")  # a new image joins
        assert create({"RunId": "r"})["JobCount"] == 1

    @pytest.mark.parametrize(
        ("other", "named"),
        [
            ({"JobCount": 5}, '"job_count": 5'),
            ({"Prefix": f"{PREFIX}x/"}, hashlib.sha256(b"cxr-nih/x/").hexdigest()[:12]),
            ({"Keys": [f"{PREFIX}a.png"]}, hashlib.sha256(b'["cxr-nih/a.png"]').hexdigest()),
        ],
    )
    def test_another_source_is_refused_naming_both(self, other: dict[str, Any], named: str) -> None:
        put("a.png", "x/b.png")
        create({"RunId": "r"})
        before = table_items(), sent()
        with pytest.raises(handler.RunIdTaken, match=named) as refused:
            create({"RunId": "r", **other})
        assert f'"value": "{PREFIX}"' in str(refused.value)
        assert (table_items(), sent()) == before

    def test_another_list_of_keys_is_another_source(self) -> None:
        create({"RunId": "r", "Keys": [f"{PREFIX}a.png"]})
        with pytest.raises(handler.RunIdTaken):
            create({"RunId": "r", "Keys": [f"{PREFIX}b.png"]})

    def test_a_key_with_a_line_break_is_not_two_keys(self) -> None:
        create({"RunId": "r", "Keys": [f"{PREFIX}a.png", f"{PREFIX}b.png"]})
        with pytest.raises(handler.RunIdTaken):
            create({"RunId": "r", "Keys": [f"{PREFIX}a.png\n{PREFIX}b.png"]})

    def test_no_message_names_an_object(self) -> None:
        put("a.png")
        put("patient-7.csv", body=b"Key\ncxr-nih/a.png\n")
        create({"RunId": "r", "IndexKey": f"{PREFIX}patient-7.csv"})
        with pytest.raises(handler.RunIdTaken) as refused:
            create({"RunId": "r"})
        assert "patient-7" not in str(refused.value)

    def test_an_error_of_the_network_does_not_name_where_it_was_going(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
            once = Config(retries={"total_max_attempts": 1})
            nowhere = job_creator(s3=boto3.client("s3", endpoint_url=url, config=once))
            event = {"RunId": "r", "Prefix": f"{PREFIX}patient-7/"}
            with pytest.raises(EndpointConnectionError, match="patient-7"):
                nowhere(event, lambda: 900_000)
            monkeypatch.setattr(handler, "setup", lambda: nowhere)
            with pytest.raises(handler.AwsError, match=r"^EndpointConnectionError$"):
                handler.handle(event, SimpleNamespace(get_remaining_time_in_millis=lambda: 900_000))

    def test_a_run_never_mixes_models(self) -> None:
        put("a.png")
        create({"RunId": "r"})
        with pytest.raises(handler.RunIdTaken, match=r"demo:1\.0\.0.*demo:2\.0\.0"):
            create({"RunId": "r"}, run_fields=RUN_FIELDS | {"model": "demo:2.0.0"})

    def test_a_cancelled_run_stops_sending_and_goes_on_when_invoked_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(*(f"{i:03}.png" for i in range(64)))
        monkeypatch.setattr(jobs, "MAX_RECORDS", 1)
        monkeypatch.setattr(handler, "CHECK_SECONDS", 0)
        read = RunTable.run
        reads: Iterator[int] = iter(range(9))

        def cancelled_at_the_second_batch(self: RunTable, run_id: str) -> Run | None:
            if next(reads) == 1:
                set_state(run_id, "CANCELLED")
            return read(self, run_id)

        with monkeypatch.context() as patch:
            patch.setattr(RunTable, "run", cancelled_at_the_second_batch)
            with pytest.raises(handler.RunStopped, match="cancelled after 1 jobs"):
                create({"RunId": "r"})
        assert run_item("r")["state"] == "CANCELLED"
        assert len(sent_keys()) == 32
        create({"RunId": "r"})
        assert run_item("r")["state"] == "SCORING"
        assert run_item("r")["expected"] == 64
        assert len(set(sent_keys())) == 64

    def test_between_two_looks_at_the_run_jobs_are_sent_without_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(*(f"{i:03}.png" for i in range(96)))
        monkeypatch.setattr(jobs, "MAX_RECORDS", 1)
        monkeypatch.setattr(handler, "CHECK_SECONDS", 3600)
        dynamodb = boto3.client("dynamodb")
        reads: list[str] = []
        dynamodb.meta.events.register("before-call.dynamodb.GetItem", lambda **_: reads.append("read"))
        assert create({"RunId": "r"}, dynamodb=dynamodb)["JobCount"] == 3
        assert len(reads) == 2  # one before the first batch, one to see whether the run is complete

    def test_a_run_that_is_being_deleted_is_not_gone_on_with(self) -> None:
        put("a.png")
        create({"RunId": "r"})
        set_state("r", "DELETING")
        with pytest.raises(handler.RunIdTaken, match="is being deleted"):
            create({"RunId": "r"})
        assert run_item("r")["state"] == "DELETING"

    @pytest.mark.parametrize("begun_again", [False, True])
    def test_a_run_deleted_while_it_is_listed_does_not_come_back(
        self, monkeypatch: pytest.MonkeyPatch, begun_again: bool
    ) -> None:
        put(*(f"{i:03}.png" for i in range(64)))
        monkeypatch.setattr(jobs, "MAX_RECORDS", 1)
        monkeypatch.setattr(handler, "CHECK_SECONDS", 0)
        check = handler.JobCreator._check

        def deleted_before(self: handler.JobCreator, run_id: str, *arguments: Any) -> None:
            table = boto3.resource("dynamodb").Table(TABLE)
            for pk, sk in table_items():
                table.delete_item(Key={"pk": pk, "sk": sk})
            if begun_again:
                begin_run(run_id, state="LISTING")
            check(self, run_id, *arguments)

        monkeypatch.setattr(handler.JobCreator, "_check", deleted_before)
        with pytest.raises(handler.RunStopped, match="was deleted after 0 jobs"):
            create({"RunId": "r"})
        before = table_items()
        job_creator()._close("r", "another", 64, "")  # where it was deleted after the last look
        assert table_items() == before
        assert (("RUN", "r") in before) == begun_again

    def test_two_that_begin_a_run_at_once_are_one_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The other's transaction is under way: DynamoDB cancels ours, and there is no run to be seen yet."""
        put("a.png")
        dynamodb = boto3.client("dynamodb")
        write, attempts = dynamodb.transact_write_items, []

        def conflicting(**options: Any) -> Any:
            attempts.append(options)
            if len(attempts) == 1:
                reasons = [{"Code": "TransactionConflict"}] + [{"Code": "None"}] * 16
                answer: Any = {
                    "Error": {"Code": "TransactionCanceledException"},
                    "CancellationReasons": reasons,
                }
                raise dynamodb.exceptions.TransactionCanceledException(answer, "TransactWriteItems")
            if len(attempts) == 2:
                create({"RunId": "r"})
            return write(**options)

        monkeypatch.setattr(dynamodb, "transact_write_items", conflicting)
        create({"RunId": "r"}, dynamodb=dynamodb)
        assert [job.get("Continued", False) for job in sent()] == [False, True]
        assert {job["RunUid"] for job in sent()} == {run_item("r")["uid"]}

    def test_another_bucket_makes_another_run(self) -> None:
        put("a.png")
        create({"RunId": "r"})
        client("s3").create_bucket(Bucket="others")
        client("s3").put_object(Bucket="others", Key=f"{PREFIX}a.png")
        with pytest.raises(handler.RunIdTaken, match=r'bucket "images".*"others"'):
            create({"RunId": "r"}, bucket="others")

    @pytest.mark.parametrize("state", ["SCORING", "COMPLETE", "CANCELLED", "LISTING"])
    @pytest.mark.parametrize("by_index", [False, True])
    def test_an_image_that_is_scored_and_gone_would_be_counted_for_another(
        self, state: str, by_index: bool
    ) -> None:
        event = {"RunId": "r", **({"IndexKey": f"{PREFIX}index.csv"} if by_index else {})}
        put("a.png", "b.png", "c.png")
        put_index("c.png", "a.png", "b.png")
        create(event)
        score("r", f"{PREFIX}a.png", f"{PREFIX}b.png")
        set_state("r", state)
        if state == "LISTING":  # what an invocation leaves that did not come to its end
            remove("r", "keys_sha256", "expected")
        put("d.png")
        client("s3").delete_object(Bucket=BUCKET, Key=f"{PREFIX}a.png")
        put_index("c.png", "d.png", "b.png")
        before = table_items(), sent()
        with pytest.raises(handler.RunImagesGone, match=r"cannot continue: 1 of the images .* Put them back"):
            create(event)
        assert (table_items(), sent()) == before
        put("a.png")
        put_index("d.png", "c.png", "b.png", "a.png")
        assert create(event)["ImageCount"] == 4  # new ones may join
        assert run_item("r")["expected"] == 4

    def test_an_image_that_is_gone_before_it_was_scored_is_missed_by_nobody(self) -> None:
        put("a.png", "b.png")
        create({"RunId": "r"})
        score("r", f"{PREFIX}b.png")
        client("s3").delete_object(Bucket=BUCKET, Key=f"{PREFIX}a.png")
        create({"RunId": "r"})
        assert (run_item("r")["state"], run_item("r")["expected"]) == ("COMPLETE", 1)

    def test_a_run_cancelled_at_the_last_moment_stays_cancelled(self) -> None:
        put("a.png")
        create({"RunId": "r"})
        set_state("r", "CANCELLED")
        job_creator()._close("r", run_item("r")["uid"], 1, "")  # of an invocation that was still listing
        assert run_item("r")["state"] == "CANCELLED"

    def test_time_that_runs_out_is_said(self) -> None:
        put("a.png")
        with pytest.raises(handler.RunStopped, match="time is up after 0 jobs"):
            create({"RunId": "r"}, remaining_ms=9_999)
        assert run_item("r")["state"] == "LISTING"

    def test_a_run_whose_images_were_scored_before_it_knew_their_number_is_complete(self) -> None:
        put("a.png", "b.png")
        create({"RunId": "r"})
        set_state("r", "LISTING")
        add_counts("r", {"SCORED": 1, "FAILED#NOT_AN_IMAGE": 1, "WARNING#COLOUR": 1})
        announced: list[dict[str, Any]] = []
        for _ in range(2):
            create({"RunId": "r"}, events=events_noted(announced))
            assert run_item("r")["state"] == "COMPLETE"
        (entry,) = announced
        assert json.loads(entry["Detail"]) == {"RunId": "r", "Scored": 1, "Failed": 1}

    def test_an_event_that_is_not_taken_leaves_the_run_to_complete(self) -> None:
        put("a.png")
        create({"RunId": "r"})
        add_counts("r", {"SCORED": 1})
        events: Any = boto3.client("events")
        refused = {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "InternalFailure"}]}
        events.meta.events.register("before-call.events.PutEvents", lambda **_: (Answered(200), refused))
        with pytest.raises(handler.RunStopped, match="EventBridge did not take the event; invoke again"):
            create({"RunId": "r"}, events=lambda: events)
        assert run_item("r")["state"] == "SCORING"
        create({"RunId": "r"})
        assert run_item("r")["state"] == "COMPLETE"

    def test_warnings_do_not_complete_a_run(self) -> None:
        put("a.png", "b.png")
        create({"RunId": "r"})
        add_counts("r", {"SCORED": 1, "WARNING#COLOUR": 1})
        create({"RunId": "r"})
        assert run_item("r")["state"] == "SCORING"

    def test_a_complete_run_stays_so_until_it_grows(self) -> None:
        put("a.png")
        create({"RunId": "r"})
        add_counts("r", {"SCORED": 1})
        create({"RunId": "r"})
        completed = run_item("r")
        assert completed["state"] == "COMPLETE"
        create({"RunId": "r"})
        assert run_item("r") == completed
        put("b.png")
        create({"RunId": "r"})
        assert run_item("r")["state"] == "SCORING"
        assert run_item("r")["expected"] == 2


class TestSending:
    def test_ten_thousand_keys_each_once(self) -> None:
        put_index(*(f"{i}.png" for i in range(10_000)))
        answer = create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"})
        assert answer == {"RunId": "r", "ImageCount": 10_000, "JobCount": 313}
        assert Counter(sent_keys()) == Counter(f"{PREFIX}{i}.png" for i in range(10_000))

    def test_what_the_stream_refuses_is_sent_again_and_nothing_else(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = throttle(monkeypatch, every=3)
        put_index(*(f"{i}.png" for i in range(3_000)))
        create({"RunId": "r", "IndexKey": f"{PREFIX}index.csv"}, images_per_job=5)
        assert len(refused) > 100
        assert Counter(sent_keys()) == Counter(f"{PREFIX}{i}.png" for i in range(3_000))

    def test_a_stream_that_never_takes_them_ends_in_a_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        throttle(monkeypatch, every=1)
        put("a.png")
        with pytest.raises(
            handler.RunStopped, match=r"refused 1 jobs 12 times .*ProvisionedThroughputExceeded"
        ):
            create({"RunId": "r"})
        assert run_item("r")["state"] == "LISTING"

    def test_calls_stay_within_what_kinesis_takes(self) -> None:
        long_keys = [f"{PREFIX}{'é' * 500}{i:04}.png" for i in range(32 * 600)]
        groups = (tuple(long_keys[start : start + 32]) for start in range(0, len(long_keys), 32))
        batches = list(jobs.batches(jobs.Job("r", "u", BUCKET, group) for group in groups))
        assert sum(map(len, batches)) == 600
        for records in batches:
            assert len(records) <= 500
            assert sum(len(r["Data"]) + len(r["PartitionKey"]) for r in records) <= 5 * 2**20
            assert max(len(r["Data"]) for r in records) < 2**20

    def test_the_partition_key_does_not_show_the_key(self) -> None:
        record = jobs.encode(jobs.Job("r", "u", BUCKET, ("patient-7.png",)))
        assert record["PartitionKey"] == hashlib.sha256(b"patient-7.png").hexdigest()


def s3_that_lists(*pages: str) -> Any:
    """A client whose listing is these pages."""
    bodies = iter(
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>'
        f"{page}<MaxKeys>1000</MaxKeys></ListBucketResult>".encode()
        for page in pages
    )
    s3: Any = s3_client(Config())
    s3.meta.events.register_first(
        "before-send.s3.ListObjectsV2",
        lambda request, **_: AWSResponse(request.url, 200, HTTPHeaders(), MockRawResponse(next(bodies))),
    )
    return s3


def add_counts(run_id: str, counts: dict[str, int]) -> None:
    boto3.resource("dynamodb").Table(TABLE).put_item(Item={**layout.counter_key(run_id, 3), **counts})


def throttle(monkeypatch: pytest.MonkeyPatch, every: int) -> list[str]:
    """Makes the stream refuse every so-manieth record it is given, as a throttled shard does."""
    put_records, seen, refused = KinesisBackend.put_records, iter(range(10**9)), []

    def partly(self: KinesisBackend, stream_arn: str, stream_name: str, records: list[Any]) -> dict[str, Any]:
        taken: list[Any] = []
        results: list[dict[str, str] | None] = []
        for record in records:
            if (next(seen) + 1) % every:
                taken.append(record)
                results.append(None)
            else:
                refused.append(record["PartitionKey"])
                results.append(
                    {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "slow"}
                )
        answers = iter(put_records(self, stream_arn, stream_name, taken)["Records"])
        merged = [result or next(answers) for result in results]
        return {"FailedRecordCount": len(records) - len(taken), "Records": merged}

    monkeypatch.setattr(KinesisBackend, "put_records", partly)
    monkeypatch.setattr("runs.backoff.time.sleep", lambda seconds: None)
    return refused
