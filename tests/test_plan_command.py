"""`cxr plan`, as typed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs.layout import PARTITIONS
from typer.testing import CliRunner, Result

from cxr.commands.app import app
from cxr.planning import capacity
from cxr.words import duration

MEASURED, PRICED = capacity.read_json(capacity.SERVICE_TIMES), capacity.read_json(capacity.PRICES)
MODELS = ", ".join(MEASURED["images_per_second"])
# Faster than a new table, so that fewer shards are cheaper.
FAST = ("--images-per-second", 90, "-c", "shards=5")
KMS_KEY = "arn:aws:kms:us-east-1:111122223333:key/a"


def cxr(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def planned(*arguments: object) -> dict[str, Any]:
    result = cxr("--json", *arguments)
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def text(*arguments: object) -> str:
    """What a person reads, its lines joined."""
    result = cxr(*arguments)
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split())


class TestJson:
    def test_the_whole_plan(self) -> None:
        found = planned("--images", 112_120)
        assert found["images"] == 112_120
        assert found["settings"] == {}
        assert found["images_per_second_per_worker"] == next(iter(MEASURED["images_per_second"].values()))
        assert found["workers"] == 10
        assert found["seconds"] == pytest.approx(found["start_seconds"] + max(found["bounds"].values()))
        assert found["bounds"][found["bottleneck"]] == max(found["bounds"].values())
        assert found["images_per_second"] == pytest.approx(112_120 / found["seconds"])
        dollars = found["dollars"]
        assert dollars["total"] == pytest.approx(sum(line["dollars"] for line in dollars["lines"]))
        assert dollars["per_1000_images"] == pytest.approx(dollars["total"] / 112.12)
        assert dollars["per_million_images"] == pytest.approx(1000 * dollars["per_1000_images"])
        for line in dollars["lines"]:
            assert line["dollars"] == pytest.approx(line["quantity"] * line["price"])
        assert found["service_times"] == {name: MEASURED[name] for name in ("measured", "machine")}
        assert found["prices"]["date"] == PRICED["date"]

    def test_every_key_is_in_the_help(self) -> None:
        said = " ".join(cxr("--help").stdout.split())
        found = planned("--images", 112_120, *FAST)
        inner = [*found["dollars"], *found["dollars"]["lines"][0], *next(iter(found["suggestions"].values()))]
        assert [name for name in (*found, *inner) if name not in said] == []

    def test_a_suggestion_is_what_planning_for_it_gives(self, tmp_path: Path) -> None:
        arguments = ("--images", 112_120, "--images-per-second", 17, "--table-writes", 40_000)
        present = planned(*arguments, "-c", "prefix=chest x-rays/", "-c", "memory=2000")
        assert set(present["suggestions"]) == {"cheaper", "faster"}
        for name, better in present["suggestions"].items():
            (tmp_path / "settings.toml").write_text(better["table"])
            again = planned(*arguments, "-c", f"settings={tmp_path / 'settings.toml'}")
            assert again["settings"] == better["settings"]
            assert again["settings"]["prefix"] == "chest x-rays/"
            assert again["seconds"] == pytest.approx(better["seconds"])
            assert again["dollars"]["total"] == pytest.approx(better["dollars"])
            assert again["dollars"]["idle_month"] == pytest.approx(better["idle_month"])
            assert name not in again["suggestions"]
        assert present["suggestions"]["cheaper"]["dollars"] < present["dollars"]["total"]
        assert present["suggestions"]["cheaper"]["seconds"] <= present["seconds"]
        assert present["suggestions"]["faster"]["seconds"] < present["seconds"]


class TestOptions:
    def test_settings_are_those_of_the_stack(self) -> None:
        found = planned("--images", 10**6, "-c", "shards=20", "-c", "imagesPerJob=99", "-c", "batchSize=2")
        assert found["settings"] == {"shards": 20, "imagesPerJob": 99, "batchSize": 2}
        assert found["workers"] == 200
        assert found["dollars"]["idle_month"] == pytest.approx(20 * 730 * 0.015 + 4.1)

    def test_the_last_of_two_values_holds(self) -> None:
        assert planned("--images", 9, "-c", "shards=2", "-c", "shards=3")["settings"] == {"shards": 3}

    @pytest.mark.parametrize("model", MEASURED["images_per_second"])
    def test_each_model(self, model: str) -> None:
        found = planned("--images", 9, "--model", model)
        assert found["images_per_second_per_worker"] == MEASURED["images_per_second"][model]
        assert found["model"] == model

    def test_an_own_measurement(self) -> None:
        found = planned("--images", 9, "--images-per-second", 12.5, "-c", "memory=3538")
        assert found["images_per_second_per_worker"] == 25
        assert found["model"] is None
        assert "12.5 images a second for each vCPU: yours" in text("--images", 9, "--images-per-second", 12.5)

    def test_concurrency_table_keys_and_index(self) -> None:
        usual = planned("--images", 10**6)
        assert planned("--images", 10**6, "--concurrency", 10)["workers"] == 10
        table = planned("--images", 10**6, "--table-writes", 8000)["bounds"]["DynamoDB table"]
        # The busiest partition of the table has fewer of the run's keys: 12 of 64 in place of 20.
        fewer = capacity.busiest_lane(PARTITIONS, 8) / capacity.busiest_lane(PARTITIONS, 4)
        assert table == pytest.approx(usual["bounds"]["DynamoDB table"] * fewer)
        warm = planned("--images", 10**6, "-c", "warmThroughput=16000")
        assert warm["bounds"] == planned("--images", 10**6, "--table-writes", 16_000)["bounds"]
        assert planned("--images", 10**6, "--key-bytes", 900)["bounds"]["stream"] > usual["bounds"]["stream"]
        indexed = planned("--images", 10**6, "--index")
        seconds = 10**6 / MEASURED["keys_per_second"]["index"]
        assert indexed["bounds"]["job creator"] == pytest.approx(seconds, abs=10)
        assert "S3, listing" not in {line["item"] for line in indexed["dollars"]["lines"]}


class TestText:
    def test_what_a_person_must_know(self) -> None:
        said = text("--images", 112_120)
        found = planned("--images", 112_120)
        table = planned("--images", 112_120, *FAST)["suggestions"]["cheaper"]["table"]
        better = text("--images", 112_120, *FAST)
        assert " ".join(table.split()) in better
        assert "-c " not in better
        for part in (
            "112,120 images in ",
            "for 1,000 images",
            "for a million",
            "10 classifiers at once",
            " ".join(["shards", "classifiers at once", "time", "dollars for the run", "idle a month"]),
            " ".join(["1 10", duration(found["seconds"]), f"{found['dollars']['total']:.2f}", "15.05 2 20"]),
            *(line["item"] for line in found["dollars"]["lines"]),
            "While nothing runs, the stack costs $15.05 a month.",
            f"Bottleneck: {found['bottleneck']}",
            MEASURED["measured"],
            MEASURED["machine"],
            f"Prices of {PRICED['date']}, us-east-1.",
            "without free tier",
        ):
            assert part in said

    def test_no_suggestion_where_there_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        best = planned("--images", 112_120, *FAST)["suggestions"]["cheaper"]["table"]
        (tmp_path / "settings.toml").write_text(best)
        monkeypatch.setenv("CXR_SETTINGS", str(tmp_path / "settings.toml"))
        said = text("--images", 112_120, *FAST[:2])
        assert "No other settings are better" in said
        assert "npx cdk deploy" not in said

    def test_what_would_go_wrong_is_said(self) -> None:
        assert "runs by Prefix" in text("--images", 10**8)

    def test_arm64_is_cheaper_and_not_measured(self) -> None:
        arguments = ("--images", 9, "-c", "architecture=arm64")
        assert "its speed was not measured" in text(*arguments)
        price = planned(*arguments)["dollars"]["lines"][0]["price"]
        assert price == pytest.approx(0.8 * planned("--images", 9)["dollars"]["lines"][0]["price"], rel=1e-3)

    def test_a_line_for_each_thing_that_is_set(self) -> None:
        settings = ("streamRetention=48", "imagesBucket=xrays", f"imagesKmsKey={KMS_KEY}")
        said = text("--images", 9, *(word for setting in settings for word in ("-c", setting)))
        assert "Kinesis, over 24 hours" in said
        assert "KMS, images" in said

    @pytest.mark.parametrize(
        ("seconds", "said"),
        [(7.06, "7.1 s"), (59.7, "60 s"), (518, "8.6 min"), (5700, "95 min"), (7200, "2.0 h")],
    )
    def test_durations(self, seconds: float, said: str) -> None:

        assert duration(seconds) == said


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--images", 0], "--images 0: expected a whole number from 1 to 1,000,000,000"),
            (["--images", -5], "--images -5: expected"),
            (["--images", 10**10], "--images 10000000000: expected"),
            (["--images", 9, "--concurrency", 0], "--concurrency 0: expected"),
            (["--images", 9, "--table-writes", 0], "--table-writes 0: expected"),
            (
                ["--images", 9, "--key-bytes", 1025],
                "--key-bytes 1025: expected a whole number from 1 to 1,024",
            ),
            (
                ["--images", 9, "--model", "resnet"],
                f"--model resnet: expected one of {MODELS}, or",
            ),
            (
                ["--images", 9, "--images-per-second", "nan"],
                "--images-per-second nan: expected 0.001 to 1,000,000",
            ),
            (["--images", 9, "--images-per-second", "inf"], "--images-per-second inf: expected"),
            (["--images", 9, "--images-per-second", 0], "--images-per-second 0: expected"),
            (["--images", 9, "--images-per-second", 1e-300], "--images-per-second 1e-300: expected"),
            (["--images", 9, "--images-per-second", -1], "--images-per-second -1: expected"),
            (["--images", 9, "-c", "shards"], "-c shards: expected name=value"),
            (["--images", 9, "-c", "shard=5"], "-c shard: no such setting, expected shards"),
            (["--images", 9, "-c", "shards=0"], "-c shards=0: expected a whole number, 1 to 1000"),
            (
                ["--images", 9, "-c", "batchSize=99"],
                "-c batchSize=99 x imagesPerJob=32: expected at most 550",
            ),
        ],
    )
    def test_is_said_in_one_line(self, arguments: list[object], said: str) -> None:
        result = cxr(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith(f"Error: {said}")

    @pytest.mark.parametrize("arguments", [[], ["--images", "many"], ["--images", "1.5"]])
    def test_what_typer_refuses(self, arguments: list[object]) -> None:
        assert cxr(*arguments).exit_code == 2


def test_as_installed_from_anywhere(tmp_path: Path) -> None:
    """The command needs stacks/ and its two tables, wherever it is typed."""
    command = [str(Path(sys.executable).with_name("cxr")), "plan", "--images", "9", "--json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert json.loads(result.stdout)["images"] == 9


def test_it_plans_with_service_times_of_ones_own(tmp_path: Path) -> None:
    own = {**MEASURED, "machine": "AWS Lambda in eu-west-1", "images_per_second": {"mine": 12.5}}
    (tmp_path / "own.json").write_text(json.dumps(own))
    given = ("--images", 1000, "--service-times", tmp_path / "own.json")
    assert (planned(*given)["model"], planned(*given)["images_per_second_per_worker"]) == ("mine", 12.5)
    said = text(*given)
    assert "mine, AWS Lambda in eu-west-1" in said
    assert "On AWS it may differ" not in said
    assert "On AWS it may differ: `cxr verify` measures it" in text("--images", 1000)


@pytest.mark.parametrize("own", ["", "[]", "{}", json.dumps({**MEASURED, "images_per_second": {"mine": 0}})])
def test_a_file_that_has_no_service_times(own: str, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(own)
    result = cxr("--images", 1000, "--service-times", tmp_path / "own.json")
    assert result.exit_code == 2
    assert "expected the service_times.json" in result.stderr
