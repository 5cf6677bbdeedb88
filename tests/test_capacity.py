"""The model behind `cxr plan`: against hand-reckoned numbers, simulation, and the code that it speaks of."""

import base64
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import botocore.client
import numpy as np
import pytest
from classifier.handler import Classifier
from runs.jobs import Job, encode
from runs.layout import COUNTERS, PARTITIONS
from runs.predictions import Prediction
from runs.table import RunTable, write_actions
from support import BUCKET, PREFIX, ROOT, TABLE, begin_run, image_bytes, uid

from benchmarks import scaling
from cxr.planning import capacity
from cxr.planning.capacity import Plan, Workload, busiest_lane
from stacks.config import Config

WRITE_UNITS = 2 * (12_800 + 400 + 1 + COUNTERS) + 2  # of WORK: predictions, jobs, a run that begins; its item
PRICES = capacity.read_json(capacity.PRICES)["prices"]
ONE_LANE = Config(shards=1, parallelization_factor=1)
MANY = Config(shards=5)  # more classifiers than a new table takes
WORK = Workload(images=12_800, images_per_second=100, cold_start_seconds=0.5, keys_per_second=10_000)
NIH_KEY = "cxr-nih/images_012/images/00030805_000.png"


def plan(images: int = 112_120, config: Config | None = None, **fields: Any) -> Plan:
    given = {"images_per_second": 90, "cold_start_seconds": 0.9, "keys_per_second": 40_000}
    return capacity.plan(Workload(images=images, **(given | fields)), config or Config(), PRICES)


class TestByHand:
    """12,800 images at 100 a second on one lane: 400 jobs of 32 images, 100 batches of 4 jobs.

    A batch of 128 images takes 1.28 s, and 0.1 s until its first image is there. A job's record has
    150 + 32 x (60 + 3) = 2,166 bytes. The table gets 2 units for each of 12,800 predictions, each job's
    change of a counter and each item that begins the run, and 2 more for the run's item.
    """

    def test_bounds(self) -> None:
        # Of the partition keys, this share is in the busiest of the four partitions: 20 of 64.
        share = busiest_lane(PARTITIONS, 4) / PARTITIONS
        assert capacity.plan(WORK, ONE_LANE, PRICES).bounds == pytest.approx(
            {
                "job creator": 12_800 / 10_000 + 13 * 0.1 + 0.1 + 0.32,  # 13 pages, and the last job
                "stream": 400 * 2166 / 1e6,
                "lanes": 100 * (1.28 + 0.1),
                "account concurrency": 100 * (1.28 + 0.1) + 0.375 * 0.1,  # and a last batch, half full
                "DynamoDB table": WRITE_UNITS * share / 1000 * capacity.RETRIED,
                # That of the counters; or one of the predictions.
                "DynamoDB partition": max(400 * 2, (WRITE_UNITS - 400 * 2) / PARTITIONS) / 1000,
                "S3 prefix": 12_800 / 5500,
            },
            rel=1e-3,
        )

    def test_time(self) -> None:
        found = capacity.plan(WORK, ONE_LANE, PRICES)
        assert found.seconds == pytest.approx(1 + 0.5 + 138, rel=1e-3)  # polled, started, scored
        assert (found.workers, found.images_per_second_per_worker) == (1, 100)

    def test_bill(self) -> None:
        found = capacity.plan(WORK, ONE_LANE, PRICES)
        gigabytes = 1769 / 1024
        assert {line.item: line.dollars for line in found.lines} == pytest.approx(
            {
                "Lambda, classifier": (138.0375 + 0.5) * gigabytes * 0.0000166667,
                "Lambda, job creator": (1.28 + 1.3) * gigabytes * 0.0000166667,
                "Lambda, requests": 102 * 0.2e-6,
                "Kinesis, shards": 0.015,  # an hour begun
                "Kinesis, jobs": 400 * 0.014e-6,
                "DynamoDB, writes": WRITE_UNITS * 0.625e-6,
                "DynamoDB, reads": 305 * 0.125e-6,  # three an invocation, and three by the job creator
                "S3, images": 12_800 * 0.4e-6,
                "S3, listing": 13 * 5e-6,
                "CloudWatch Logs": 100.375 * 1300e-9 * 0.5,
                "CloudWatch, metrics": 8 * 0.3 / 730,  # an hour begun
                "X-Ray, traces": 101 * 5e-6,  # no more than there are invocations
            },
            rel=1e-3,
        )
        assert found.dollars == pytest.approx(sum(line.dollars for line in found.lines))
        assert found.idle_dollars == pytest.approx(730 * 0.015 + 11 * 0.1 + 3)  # shard, alarms, dashboard

    def test_what_only_some_settings_cost(self) -> None:
        key = "arn:aws:kms:us-east-1:111122223333:key/a"
        config = Config(shards=5, stream_retention=48, images_bucket="xrays", images_kms_key=key)
        lines = {line.item: line.dollars for line in plan(config=config).lines}
        assert lines["Kinesis, over 24 hours"] == pytest.approx(5 * 0.02)
        assert lines["KMS, images"] == pytest.approx(112_120 * 0.03 / 10_000)
        arm = {line.item: line.dollars for line in plan(config=Config(architecture="arm64")).lines}
        x86 = {line.item: line.dollars for line in plan().lines}
        assert arm["Lambda, classifier"] == pytest.approx(0.8 * x86["Lambda, classifier"], rel=1e-3)

    def test_an_isolated_network_is_paid_by_the_hour(self) -> None:
        """Two interface endpoints in two zones; 400 jobs of 2,166 bytes pass one of them."""
        isolated = capacity.plan(WORK, replace(ONE_LANE, network="isolated"), PRICES)
        lines = {line.item: line.dollars for line in isolated.lines}
        assert lines["Endpoints"] == pytest.approx(4 * 0.01)
        assert lines["Endpoints, jobs"] == pytest.approx(400 * 2166e-9 * 0.01)
        found = capacity.plan(WORK, ONE_LANE, PRICES)
        assert isolated.idle_dollars - found.idle_dollars == pytest.approx(4 * 0.01 * 730)
        assert isolated.seconds == found.seconds

    def test_from_an_index_nothing_is_listed(self) -> None:
        found = plan(indexed=True, keys_per_second=50_000)
        assert capacity.job_creator_seconds(found.workload) == pytest.approx(112_120 / 50_000 + 0.2)
        assert "S3, listing" not in {line.item for line in found.lines}

    def test_long_keys_take_more_units(self) -> None:
        long = Workload(**{**vars(WORK), "key_bytes": 1024})
        assert capacity.write_units(long, ONE_LANE) == 2 * 12_800 + WRITE_UNITS  # 1,274 bytes are 2 KB
        puts = next(
            line for line in capacity.bill(long, ONE_LANE, plan().bounds, 1, PRICES) if "jobs" in line.item
        )
        assert puts.quantity == 400 * 2  # 33,014 bytes are two units of 25 KB


class TestMemory:
    @pytest.mark.parametrize(
        ("memory", "vcpus"), [(1200, 1200 / 1769), (1769, 1), (3537, 1), (3538, 2), (10_240, 5)]
    )
    def test_whole_vcpus_score_and_less_than_one_is_a_share(self, memory: int, vcpus: float) -> None:
        config = Config(memory=memory, batch_size=1)
        assert plan(config=config, images_per_second=10).images_per_second_per_worker == 10 * vcpus

    def test_fetching_has_an_end(self) -> None:
        """16 fetches at once, each 0.1 s to the first byte."""
        assert plan(config=Config(memory=10_240)).images_per_second_per_worker == 160

    def test_a_share_of_a_vcpu_starts_slower(self) -> None:
        assert plan(config=Config(memory=1200)).start_seconds == pytest.approx(1 + 0.9 * 1769 / 1200)


class TestBusiestLane:
    @pytest.mark.parametrize(
        ("jobs", "lanes"), [(10, 50), (313, 50), (3537, 50), (3537, 1000), (200_000, 20)]
    )
    def test_as_in_simulation(self, jobs: int, lanes: int) -> None:
        """The least number that at most half of all runs exceed."""
        draws = np.random.default_rng(0).multinomial(jobs, [1 / lanes] * lanes, size=2000).max(axis=1)
        found = busiest_lane(jobs, lanes)
        assert (draws > found).mean() <= 0.53
        assert (draws > found - max(1, 0.002 * found)).mean() > 0.4

    def test_small_numbers_by_hand(self) -> None:
        assert busiest_lane(7, 1) == 7
        assert busiest_lane(64, 4) == 20
        assert busiest_lane(1, 50) == 1
        assert busiest_lane(2, 2) == 1  # together in half of all runs
        assert busiest_lane(3, 2) == 2  # three together in a quarter


class TestRamps:
    """Against adding up what is done in each of many small steps."""

    def test_concurrency(self) -> None:
        config = Config(shards=500)
        workload = Workload(**{**vars(WORK), "images": 10**7, "images_per_second": 20, "concurrency": 3500})
        assert capacity.workers(workload, config) == 3500
        work, seconds = 0.0, 0.0
        while work < capacity.work_seconds(workload, config):
            work += 0.01 * min(3500, 1000 + 1000 * int(seconds / 10))
            seconds += 0.01
        assert seconds > 40
        assert capacity.concurrency_seconds(workload, config) == pytest.approx(seconds, abs=0.1)

    @pytest.mark.parametrize(
        ("images", "writes"), [(10**6, 4000), (10**8, 4000), (10**8, 30_000), (10**7, 80_000)]
    )
    def test_table(self, images: int, writes: int) -> None:
        workload = Workload(**{**vars(WORK), "images": images, "table_writes": writes})
        written, seconds, rate = 0.0, 0, writes
        while written < capacity.write_units(workload, ONE_LANE):
            if seconds and seconds % 1800 == 0:
                rate = max(writes, min(40_000, 2 * rate))
            written += capacity.table_rate(rate)
            seconds += 1
        assert capacity.table_seconds(workload, ONE_LANE) == pytest.approx(seconds, abs=1)

    def test_classifiers_that_wait_for_the_table_are_paid(self) -> None:
        def gigabyte_seconds(found: Plan) -> float:
            return found.lines[0].quantity * 1024 / 1769

        waiting, free = (plan(config=MANY, table_writes=writes) for writes in (4000, 40_000))
        assert waiting.bottleneck == "DynamoDB table"
        assert gigabyte_seconds(waiting) == pytest.approx(50 * (waiting.bounds["DynamoDB table"] + 0.9))
        assert gigabyte_seconds(free) < 0.6 * gigabyte_seconds(waiting)


class TestOrder:
    """What helps never harms."""

    @pytest.mark.parametrize("images", [1, 33, 1000, 112_120, 10**7])
    @pytest.mark.parametrize("images_per_job", [1, 32, 99])
    def test_more_shards_are_never_slower(self, images: int, images_per_job: int) -> None:
        for table_writes in (4000, 40_000):
            seconds = [
                plan(
                    images,
                    Config(shards=shards, images_per_job=images_per_job),
                    table_writes=table_writes,
                    concurrency=5000,
                ).seconds
                for shards in (*range(1, 30), 40, 60, 100, 200, 500, 1000)
            ]
            assert seconds == sorted(seconds, reverse=True)

    @pytest.mark.parametrize(
        ("field", "values"),
        [
            ("images_per_second", (1, 10, 17, 90, 500)),
            ("concurrency", (1, 10, 50, 1000, 5000)),
            ("table_writes", (1000, 4000, 40_000, 100_000)),
            ("keys_per_second", (1000, 40_000)),
        ],
    )
    def test_a_faster_part_is_never_slower(self, field: str, values: Sequence[Any]) -> None:
        for config in (Config(), Config(shards=50)):
            seconds = [plan(config=config, **{field: value}).seconds for value in values]
            assert seconds == sorted(seconds, reverse=True)

    def test_more_images_take_longer_and_cost_more(self) -> None:
        plans = [plan(images) for images in (1, 2, 31, 32, 33, 100, 999, 1000, 1001, 10**4, 10**6, 10**9)]
        assert [p.seconds for p in plans] == sorted(p.seconds for p in plans)
        assert [p.dollars for p in plans] == sorted(p.dollars for p in plans)

    def test_no_run_is_faster_than_its_parts(self) -> None:
        for shards in (1, 5, 100):
            found = plan(config=Config(shards=shards), concurrency=200)
            assert found.seconds > 112_120 / (min(200, shards * 10) * 90)
            assert found.seconds > 112_120 / 5500
            assert found.bounds[found.bottleneck] == max(found.bounds.values())


class TestWarnings:
    @pytest.mark.parametrize(
        ("images", "config", "fields", "said"),
        [
            (10**7, Config(), {}, "at least 2 runs by Prefix"),
            (10**8, Config(), {"images_per_second": 17}, "after recordAge=12 a waiting job is discarded"),
            (10**4, Config(), {"images_per_second": 1}, "A batch takes 128 s, and timeout=120 leaves it 110"),
            (10**6, Config(shards=50), {}, "write over twice what DynamoDB takes"),
        ],
    )
    def test_what_would_go_wrong(self, images: int, config: Config, fields: Any, said: str) -> None:
        assert [said in warning for warning in plan(images, config, **fields).warnings].count(True) == 1

    def test_nothing_else_is_warned_of(self) -> None:
        assert plan().warnings == ()
        assert plan(4, images_per_second=1).warnings == ()  # a batch has no more images than there are


class TestSuggestions:
    @pytest.mark.parametrize(
        ("images", "fields"),
        [
            (100, {}),
            (112_120, {}),
            (112_120, {"images_per_second": 5, "table_writes": 40_000}),
            (112_120, {"images_per_second": 5, "concurrency": 10}),
            (10**7, {"images_per_second": 17}),
        ],
    )
    def test_they_are_what_they_are_called(self, images: int, fields: Any) -> None:
        present = plan(images, MANY, **fields)
        found = capacity.suggest(present, PRICES)
        assert found
        for name, better in found.items():
            assert better == plan(images, better.config, **fields)
            assert set(better.warnings) <= set(present.warnings)
            if name == "cheaper":
                assert better.seconds <= present.seconds
                assert better.dollars < 0.97 * present.dollars
                assert better.idle_dollars <= present.idle_dollars
            else:
                assert better.seconds < 0.97 * present.seconds

    def test_few_executions_get_more_memory(self) -> None:
        """The only way to be faster, if the account allows ten at once."""
        present = plan(images_per_second=5, concurrency=10)
        assert capacity.suggest(present, PRICES)["faster"].config.memory == 5 * 1769

    def test_what_is_best_stays(self) -> None:
        first = capacity.suggest(plan(config=MANY), PRICES)["cheaper"]
        assert "cheaper" not in capacity.suggest(first, PRICES)

    def test_each_point_of_the_grid_is_a_setting(self) -> None:
        for name, values in capacity.GRID.items():
            first, *rest = name.split("_")
            for value in values:
                context = {first + "".join(map(str.capitalize, rest)): str(value), "timeout": "900"}
                assert getattr(Config.from_context(context), name) == value

    def test_other_settings_stay_as_they_are(self) -> None:
        present = plan(config=Config(prefix="a/", timeout=300, architecture="arm64"))
        for better in capacity.suggest(present, PRICES).values():
            assert (better.config.prefix, better.config.timeout) == ("a/", 300)
            assert better.config.architecture == "arm64"


class TestShards:
    def test_more_are_shown_as_long_as_they_save_time(self) -> None:
        shown = capacity.by_shards(plan(config=Config(batch_size=2)))
        assert [found.config.shards for found in shown] == [1, 2]
        assert [found.seconds for found in shown] == sorted((found.seconds for found in shown), reverse=True)
        assert shown[-1] == plan(config=Config(shards=2, batch_size=2))
        assert 5 in [found.config.shards for found in capacity.by_shards(plan(config=MANY))]

    def test_the_defaults_score_all_of_nihs_images_soon_and_cheaply(self) -> None:
        """What the README promises, with the measured service times."""
        found = scaling.plan(112_120)
        assert (found.seconds < 4 * 60, found.dollars < 0.4, found.idle_dollars <= 16) == (True, True, True)


class TestTheCodeThatIsPlannedFor:
    """What the formulas take for granted of the job creator and the classifier."""

    def test_a_job_is_as_large_as_that(self) -> None:
        job = Job("nih-2026-11", "0" * 16, "chestxray-storageimages-abcdefghijkl", (NIH_KEY,) * 32)
        record = encode(job)
        size = len(record["Data"]) + len(record["PartitionKey"])
        workload = Workload(**{**vars(WORK), "key_bytes": len(NIH_KEY)})
        assert capacity.job_bytes(workload, Config()) == pytest.approx(size, rel=0.05)

    def test_a_prediction_is_no_larger_than_that(self) -> None:
        """Bytes of an item are those of its names and values (DynamoDB guide, CapacityUnitCalculations)."""
        done = Prediction(NIH_KEY, {"abnormal": Decimal("0.123456")}, ("abnormal",), ("NOT_A_FRONTAL_CHEST",))
        stamp = {
            "model": "nih-abnormal:1.0.0",
            "model_sha256": "a" * 64,
            "scored_at": "2026-11-24T12:00:00+00:00",
        }
        put, counter = write_actions(TABLE, "nih-2026-11", "0" * 16, [done], {}, stamp)
        assert "Put" in put
        assert "Update" in counter
        punctuation = sum(json.dumps(put["Put"]["Item"]).count(mark) for mark in '"{}[]:, ')
        size = len(json.dumps(put["Put"]["Item"])) - punctuation
        assert size == pytest.approx(capacity.ITEM_BYTES + len(NIH_KEY), rel=0.25)

    @pytest.mark.usefixtures("aws")
    def test_an_invocation_makes_these_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two jobs of three images: a GET each, a transaction a job, two reads of the run, one of counts."""

        class Grey:
            name, sha256 = "grey:1", "cd" * 32

            def prepare(self, data: bytes) -> tuple[bytes, tuple[str, ...]]:
                return data, ()

            def score(self, pixels: Sequence[bytes]) -> list[dict[str, Decimal]]:
                return [{"grey": Decimal("0.5")} for _ in pixels]

            def positive(self, _scores: dict[str, Decimal]) -> tuple[str, ...]:
                return ()

        keys = [f"{PREFIX}{number}.png" for number in range(6)]
        s3, dynamodb = boto3.client("s3"), boto3.client("dynamodb")
        for key in keys:
            s3.put_object(Bucket=BUCKET, Key=key, Body=image_bytes())
        begin_run("r", model="grey:1", model_sha256="cd" * 32, expected=9)
        model: Any = Grey()
        table = RunTable(dynamodb, TABLE)
        classifier = Classifier(
            model=model, table=table, s3=s3, events=lambda: boto3.client("events"), bucket=BUCKET, vcpus=1
        )
        calls: Counter[str] = Counter()
        real = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]

        def counted(self: Any, name: str, arguments: Any) -> Any:
            calls[name] += 1
            return real(self, name, arguments)

        monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", counted)
        job = {"RunId": "r", "RunUid": uid("r"), "Bucket": BUCKET}
        jobs = [{**job, "Keys": keys[start : start + 3]} for start in (0, 3)]
        data = [base64.b64encode(json.dumps(job).encode()).decode() for job in jobs]
        records = [{"kinesis": {"sequenceNumber": str(n), "data": record}} for n, record in enumerate(data)]
        assert classifier({"Records": records}, lambda: 100_000) == {"batchItemFailures": []}
        assert calls == {"GetObject": 6, "TransactWriteItems": 2, "GetItem": 2, "Query": 1}


class TestFiles:
    def test_every_price_says_where_it_is_from(self) -> None:
        table = capacity.read_json(capacity.PRICES)
        assert (table["region"], table["currency"]) == ("us-east-1", "USD")
        for price in table["prices"].values():
            assert price["dollars"] > 0
            assert price["per"] >= 1
            assert price["unit"]
            assert price["page"].startswith("https://aws.amazon.com/")

    def test_the_first_service_time_is_of_the_model_that_ships(self) -> None:
        shipped = json.loads((ROOT / "containers" / "classifier" / "model" / "model.json").read_text())
        assert next(iter(capacity.read_json(capacity.SERVICE_TIMES)["images_per_second"])) == shipped["name"]

    @pytest.mark.slow
    def test_the_page_on_scaling_is_up_to_date(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """For the partitions and counters that it names. If it is not: python -m benchmarks.scaling"""
        page = (ROOT / "docs" / "scaling.md").read_text()
        for name, named in (("PARTITIONS", r"over (\d+) partition keys"), ("COUNTERS", r"then (\d+) reads")):
            (number,) = re.findall(named, page)
            for module in (capacity, scaling):
                monkeypatch.setattr(module, name, int(number))
        scaling.write(tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["scaling-cost.svg", "scaling-shards.svg", "scaling-time.svg", "scaling.md"]
        for name in names:
            assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text(), name
            assert name == "scaling.md" or f"]({name})" in (tmp_path / "scaling.md").read_text()
