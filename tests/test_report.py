"""The report of a run in Chromium: opened from a file, used as a person would, and checked by axe."""

import gzip
import json
import re
import shutil
import socket
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
import typer
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from classifier.decode import decode
from classifier.model import Model
from classifier.preprocessing import Pixels, Preprocessing
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from runs import layout
from runs.attributes import pack
from runs.codes import ErrorCode
from runs.predictions import Prediction
from runs.table import RunTable
from support import BUCKET, PREFIX, STREAM, TABLE, begin_run, client, uid
from typer.testing import CliRunner

from cxr import RESEARCH_ONLY
from cxr.bundles import SHIPPED
from cxr.commands import report as report_command
from cxr.errors import InputError
from cxr.evaluation.cohort import TrainingSet, fingerprint
from cxr.evaluation.labels import Labels, Reference, read_labels
from cxr.evaluation.measures import NONE, LabelledScores, measure
from cxr.explanation import map_layer
from cxr.phantoms import draw_phantom
from cxr.report_page import document, template
from cxr.report_page.gallery import MAP, PICTURES, fetch_from, picture, pictured_rows, thumbnail
from cxr.runs import RunStatus
from cxr.stack import Stack
from stacks.config import Config

pytestmark = pytest.mark.xdist_group("report")  # they share a browser and a page

CHROMIUM = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HOSTILE = f'{PREFIX}</script><img src=x onerror="window.pwned=1">&amp;\''
CARD = json.loads((SHIPPED / "model.json").read_text())
THRESHOLD = Decimal(str(CARD["labels"][0]["threshold"]))
WHOLE_RUN = 113_178
MAPPING = "00000000-0000-0000-0000-000000000000"
STACK = Stack("ChestXray", BUCKET, PREFIX, "creator", STREAM, "classifier", MAPPING, TABLE, "failures")

Open = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium or Playwright's own, without a window."""
    executable = shutil.which("chromium")
    with sync_playwright() as playwright:
        if not executable and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("needs Chromium: apt-get install chromium, or .venv/bin/playwright install chromium")
        chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def tab(browser: Browser) -> Page:
    """One for all tests: Chromium takes 1.5 s for a new one."""
    return browser.new_page()


@pytest.fixture
def opened(tab: Page) -> Iterator[Open]:
    """Opens a file and draws all of it. Fails at the end if a page made a request or logged anything."""
    wrong: list[str] = []

    def asked(url: str) -> None:
        if not url.startswith(("file:", "data:", "about:")):
            wrong.append(f"asked for {url}")

    listeners: dict[Any, Callable[[Any], None]] = {
        "console": lambda message: wrong.append(f"console: {message.text}"),
        "pageerror": lambda error: wrong.append(f"error: {error}"),
        "request": lambda request: asked(request.url),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)

    def open_file(path: Path, *, width: int = 1280, dark: bool = False) -> Page:
        tab.goto("about:blank")  # Chromium does not load an address anew that differs only after the #
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme="dark" if dark else "light", media="screen")
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]")
        return tab

    yield open_file
    tab.goto("about:blank")
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert wrong == []


@pytest.fixture(scope="session")
def model() -> Model:
    return Model(SHIPPED)


def prediction(number: int, score: float | None, label: str = "abnormal", **fields: Any) -> Prediction:
    key = fields.pop("key", f"{PREFIX}drawn/{number:08d}.png")
    if score is None:
        return Prediction(key, error=fields.pop("error", "IMAGE_CORRUPT"))
    exact = Decimal(str(round(score, 6)))
    return Prediction(key, {label: exact}, (label,) if exact >= THRESHOLD else (), **fields)


def run_of(count: int, **fields: Any) -> RunStatus:
    begun = datetime(2026, 11, 24, 20, 10, tzinfo=UTC)
    known: dict[str, Any] = {
        "run_id": "nightly",
        "uid": "u",
        "state": "COMPLETE",
        "model": f"{CARD['name']}:{CARD['version']}",
        "expected": count,
        "counts": Counter(SCORED=count),
        "model_sha256": "0" * 64,
        "source": {"kind": "Prefix", "value": PREFIX},
        "created_at": begun,
        "completed_at": begun.replace(minute=14),
    }
    return RunStatus(**known | fields)


def write(path: Path, predictions: list[Prediction], **fields: Any) -> Path:
    """A report of these predictions, with nothing else unless `fields` name it."""
    run = fields.pop("run", run_of(len(predictions)))
    document.write(path, run=run, predictions=iter(predictions), **{"labels": ["abnormal"], **fields})
    return path


def cohort(count: int = 300) -> tuple[list[Prediction], Labels]:
    """Scores better than chance, some of them shared by several images, and the labels of all but ten."""
    random = np.random.default_rng(0)
    positive = random.random(count) < 0.4
    scores = (1 / (1 + np.exp(-random.normal(positive * 1.2 - 0.8)))).round(2)
    outcomes = [prediction(i, float(score)) for i, score in enumerate(scores)]
    references = [
        Reference(outcomes[i].key, bool(positive[i]), f"patient {i // 2}", ("PA" if i % 3 else "AP",), i)
        for i in range(count - 10)
    ]
    return outcomes, Labels(references, ("view",))


@cache
def phantom(seed: int) -> bytes:
    file = BytesIO()
    draw_phantom(seed, opacity=bool(seed % 2)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """A report with everything: labels, groups, failures, warnings, pictures, maps, model card and cost."""
    outcomes, labels = cohort()
    outcomes[3] = prediction(3, None)
    outcomes[4] = prediction(4, 0.99, warnings=("COLOUR", "LOOKS_SIDEWAYS"))
    missing = outcomes[4].key
    return write(
        tmp_path_factory.mktemp("report") / "pictured.html",
        outcomes,
        model=model,
        training_set=TrainingSet(frozenset(), frozenset()),
        references=lambda _: labels,
        settings=Config().settings(),
        fetch=lambda key: None if key == missing else phantom(int(key[-5])),
    )


LIMITS = {
    "abnormal": THRESHOLD,
    "Mass": Decimal("0.6"),
    "Pleural effusion": Decimal("0.4"),  # of which the reference labels say nothing
    "Nodule": Decimal("0.5"),  # which no image has, by the reference labels
}


class SeveralMaps(Model):
    """The shipped model, as if it had these labels: the map of each is that of abnormal, turned."""

    def explain(self, pixels: Pixels) -> dict[str, npt.NDArray[np.float32]]:
        cam = super().explain(pixels)["abnormal"]
        return {label: np.rot90(cam, turns) for turns, label in enumerate(LIMITS)}


def write_several(path: Path, **fields: Any) -> Path:
    """A report of a run that has scores of all LIMITS."""
    random = np.random.default_rng(0)
    outcomes: list[Prediction] = []
    rows = ["file,abnormal,Mass,Nodule,view"]
    for i in range(200):
        truth = (i % 2, i % 3 // 2, 0, 0)
        drawn = dict(zip(LIMITS, (random.random(4) + 0.5 * np.array(truth)) / 1.5, strict=True))
        scores = {label: Decimal(f"{score:.6f}") for label, score in drawn.items()}
        positive = tuple(label for label, score in scores.items() if score >= LIMITS[label])
        outcomes.append(Prediction(f"{PREFIX}drawn/{i:08d}.png", scores, positive))
        rows.append(f"{i:08d}.png,{truth[0]},{truth[1]},0,{'PA' if i % 5 else 'AP'}")
    outcomes[3] = prediction(3, None)
    references = path.with_suffix(".csv")
    references.write_text("\n".join(rows))
    return write(
        path,
        outcomes,
        **{
            "run": run_of(200, thresholds=LIMITS),
            "labels": list(LIMITS),
            "references": lambda label: read_labels(references, label, ("view",)),
            **fields,
        },
    )


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything, for several labels."""
    return write_several(
        tmp_path_factory.mktemp("report") / "several.html",
        model=SeveralMaps(SHIPPED),
        settings=Config().settings(),
        fetch=lambda key: phantom(int(key[-5])),
    )


def chooser(page: Page) -> Locator:
    return page.get_by_label("Label", exact=True)


def document_in(path: Path) -> Any:
    """What a report shows, unpacked."""
    packed = re.search(r'id="data">(.*?)</script>', path.read_text())
    assert packed
    return json.loads(gzip.decompress(b64decode(packed[1])))


def info(page: Page) -> str:
    return page.locator(".dt-info").inner_text()


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"#table tbody tr td:nth-child({number})").all_inner_texts()


# Waits until the charts fit a new width: the page draws them before a frame, and the next frame follows.
DRAWN = "new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"

# Types into the search and returns the milliseconds until the table shows what it found.
SEARCH = """async (text) => {
  const field = document.getElementById("search");
  const answered = new Promise((found) => new MutationObserver(found).observe(
    document.querySelector(".dt-info"), {childList: true, characterData: true, subtree: true}));
  const started = performance.now();
  field.value = text;
  field.dispatchEvent(new Event("input", {bubbles: true}));
  await answered;
  return performance.now() - started;
}"""


@pytest.mark.examples(few=5_000, many=WHOLE_RUN)
def test_a_run_is_searched_sorted_and_filtered(tmp_path: Path, opened: Open, examples: int) -> None:
    """`make search` does it with all of NIH's images."""
    random = np.random.default_rng(0)
    scores = random.random(examples).round(6)
    outcomes = [
        prediction(i, None, error="IMAGE_EMPTY") if i % 200 == 7 else prediction(i, float(scores[i]))
        for i in range(examples)
    ]
    scored = [score for score, one in zip(scores, outcomes, strict=True) if not one.error]
    page = opened(write(tmp_path / "run.html", outcomes[::-1]))  # in any order

    opening = page.evaluate("performance.now()")

    assert info(page) == f"1 to 25 of {examples:,} images"
    shown = [float(text) for text in column(page, 3)]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == max(scored)

    searched = page.evaluate(SEARCH, "00042")
    print(f"{examples:,} rows: drawn by {opening:.0f} ms after navigation, searched in {searched:.0f} ms")
    named = [one for one in outcomes if "00042" in one.key]
    assert info(page) == f"1 to 25 of {len(named):,} images (of {examples:,} in all)"
    assert all("00042" in key for key in column(page, 1))
    page.locator("#filters").get_by_label("Outcome").select_option("failed")
    assert sorted(column(page, 1)) == sorted(one.key for one in named if one.error)
    assert set(column(page, 2)) == {"IMAGE_EMPTY"}

    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".dt-info")).to_have_text(f"1 to 25 of {examples:,} images")
    page.locator("#filters").get_by_label("Search keys").fill("image_empty")
    assert info(page) == f"1 to 25 of {examples - len(scored):,} images (of {examples:,} in all)"
    page.locator("#filters").get_by_label("Search keys").fill("")
    page.locator("#filters").get_by_label("Score from").fill("0.25")
    highest = round(0.25 + 10 / examples, 6)
    page.locator("#filters").get_by_label("up to").fill(str(highest))
    within = sum(0.25 <= score <= highest for score in scored)
    assert page.locator("#table tbody td.score").count() == within > 0
    page.locator("#filters").get_by_label("Search keys").fill("no such key")
    expect(page.locator("#table tbody")).to_contain_text("No image matches")


def test_the_table_is_sorted_and_paged_by_keyboard(tmp_path: Path, opened: Open) -> None:
    outcomes = [prediction(i, None if i % 10 == 0 else i / 100) for i in range(100)]
    page = opened(write(tmp_path / "run.html", outcomes))
    header = page.locator("#table thead th", has_text="Score")
    assert header.get_attribute("aria-sort") == "descending"
    header.locator("[tabindex='0']").focus()
    page.keyboard.press("Enter")
    expect(header).to_have_attribute("aria-sort", "ascending")
    assert column(page, 3)[:2] == [
        "0.010000",
        "0.020000",
    ]  # rows without a score come last in both directions
    page.get_by_label("Last page").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".dt-info")).to_have_text("76 to 100 of 100 images")
    assert column(page, 3)[-10:] == [""] * 10


def test_figures_at_the_slider_are_those_of_the_evaluation(tmp_path: Path, opened: Open) -> None:
    outcomes, labels = cohort()
    page = opened(write(tmp_path / "run.html", outcomes, references=lambda _: labels))
    known = len(labels.references)
    data = LabelledScores(
        np.array([float(one.scores["abnormal"]) for one in outcomes[:known]]),
        np.array([reference.positive for reference in labels.references]),
    )
    # At a score that several images share, between scores, below all and above all.
    for threshold in (0.5, float(THRESHOLD), 0.2, 0.715, 0.0, 1.0):
        page.get_by_label("Called positive from").fill(str(threshold))
        found = measure(data, threshold, probability=False).measures
        for name in ("tp", "fp", "tn", "fn"):
            assert page.locator(f"#cell-{name} .count").inner_text() == str(found[name].value)
        for name in ("sensitivity", "specificity", "ppv", "npv", "accuracy"):
            value = found[name].value
            expected = NONE if value is None else f"{value:.3f}"
            assert page.locator(f"#rate-{name}").inner_text() == expected, (threshold, name)


def test_the_slider_moves_by_keyboard_and_updates_the_charts_and_the_filter(
    pictured: Path, opened: Open
) -> None:
    page = opened(pictured)
    slider = page.locator("#threshold")
    before = page.locator("#evaluation circle.threshold-dot").first.get_attribute("cy")
    page.locator("#filters").get_by_label("Reference").select_option("false-negative")
    few = page.locator("#cell-fn .count").inner_text()
    assert f"of {few} images" in info(page)
    slider.focus()
    page.keyboard.press("PageUp")
    page.keyboard.press("PageUp")
    assert page.locator("#evaluation circle.threshold-dot").first.get_attribute("cy") != before
    more = page.locator("#cell-fn .count").inner_text()
    assert int(more) > int(few)
    expect(page.locator(".dt-info")).to_contain_text(f"of {more} images")
    expect(page.locator("#spoken")).to_contain_text("sensitivity")
    page.get_by_role("button", name="Reset to the run's threshold").click()
    assert page.locator("#cell-fn .count").inner_text() == few
    assert page.get_by_label("Called positive from").input_value() == str(THRESHOLD)


def test_the_map_fades_over_the_pictures_and_a_picture_opens(pictured: Path, opened: Open) -> None:
    page = opened(pictured)
    overlay = page.locator("img.map").first
    opacity = "image => getComputedStyle(image).opacity"
    assert overlay.evaluate(opacity) == "0.4"
    fade = page.locator("#gallery").get_by_label("Class activation map")
    fade.focus()
    page.keyboard.press("Home")
    assert overlay.evaluate(opacity) == "0"
    page.keyboard.press("End")
    assert overlay.evaluate(opacity) == "1"
    widths = page.locator("img").evaluate_all(
        """images => Promise.all(images.map(async (image) => {
            await image.decode();
            return image.naturalWidth;
        }))"""
    )
    assert min(widths) > 0

    page.locator("#gallery button.picture").first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text(PREFIX)
    dialog.get_by_label("Class activation map").focus()
    page.keyboard.press("Home")
    assert dialog.locator("img.map").evaluate(opacity) == overlay.evaluate(opacity) == "0"
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert fade.input_value() == "0"


def test_the_gallery_has_the_extremes_and_the_worst_mistakes(pictured: Path, opened: Open) -> None:
    page = opened(pictured)
    outcomes, labels = cohort()
    outcomes[3] = prediction(3, None)
    outcomes[4] = prediction(4, 0.99)
    truth = {reference.image: reference.positive for reference in labels.references}
    scored = [(float(one.scores["abnormal"]), truth.get(one.key)) for one in outcomes if one.scores]
    limit = float(THRESHOLD)
    expected = {
        "False positives": sorted((-s for s, t in scored if t is False and s >= limit)),
        "False negatives": sorted(s for s, t in scored if t is True and s < limit),
        "Highest scores": sorted(-s for s, _ in scored),
        "Nearest to the threshold": sorted((s for s, _ in scored), key=lambda s: round(abs(s - limit), 6)),
        "Lowest scores": sorted(s for s, _ in scored),
    }
    assert page.locator("#gallery h3").all_inner_texts() == list(expected)
    for number, scores in enumerate(expected.values()):
        shown = page.locator("#gallery ul").nth(number).locator("figcaption b").all_inner_texts()
        assert shown == [f"{abs(score):.3f}" for score in scores[:12]]
    expect(page.locator(".placeholder").first).to_contain_text("not in the bucket")


def test_a_chosen_label_looks_as_on_a_page_of_its_own(several: Path, tmp_path: Path, opened: Open) -> None:
    parts = ("#tiles", "#scores", "#evaluation", "#failures", "#predictions", "#about")
    page = opened(several)
    assert chooser(page).locator("option").all_inner_texts() == list(LIMITS)
    chosen = {}
    for label in reversed(LIMITS):
        chooser(page).select_option(label)
        if label == "Pleural effusion":
            continue
        chosen[label] = {part: page.locator(part).inner_text() for part in parts}
        assert page.get_by_label("Called positive from").input_value() == str(LIMITS[label])
        assert page.title() == f"nightly, {label}: chest X-ray run"
    for label, shown in chosen.items():
        alone = opened(
            write_several(
                tmp_path / "alone.html",
                labels=[label],
                model=SeveralMaps(SHIPPED),
                settings=Config().settings(),
            )
        )
        expect(alone.locator("#chooser")).to_be_hidden()
        for part in parts:
            assert alone.locator(part).inner_text() == shown[part], (label, part)


def test_a_label_says_why_it_cannot_be_measured(several: Path, opened: Open) -> None:
    page = opened(several)
    reference = page.locator("#filters").get_by_label("Reference")
    reference.select_option("false-negative")
    chooser(page).select_option("Pleural effusion")
    expect(page.locator("#evaluation")).to_contain_text("Pleural effusion cannot be measured: ")
    expect(page.locator("#evaluation")).to_contain_text("expected a column Pleural effusion of 0 and 1")
    expect(page.locator("#cell-called")).to_be_visible()
    expect(reference).to_be_hidden()
    assert info(page) == "1 to 25 of 200 images"  # a filter that is hidden leaves out nothing
    chooser(page).select_option("Nodule")
    expect(page.locator(".charts")).to_contain_text("Not defined: the labels have only one class.")


def test_the_label_is_chosen_by_keyboard_and_the_section_stays_in_place(several: Path, opened: Open) -> None:
    page = opened(several)
    page.locator("#filters").get_by_label("Outcome").select_option("1")
    page.get_by_role("link", name="Gallery").click()
    top = "section => Math.round(section.getBoundingClientRect().top)"
    before = page.locator("#gallery").evaluate(top)
    chooser(page).focus()
    for label in list(LIMITS)[1:]:
        page.keyboard.press("ArrowDown")
        expect(chooser(page)).to_have_value(label)
        expect(chooser(page)).to_be_focused()
        assert abs(page.locator("#gallery").evaluate(top) - before) <= 1, label
        expect(page.locator("#gallery")).to_contain_text(f"most likely {label} by the model")
        assert set(column(page, 2)) == {label}  # the filter stays


def test_the_address_names_the_label_and_the_section(several: Path, opened: Open) -> None:
    page = opened(several)
    assert "#" not in page.url
    chooser(page).select_option("Pleural effusion")
    assert page.url.endswith("#label=Pleural+effusion")
    page.get_by_role("link", name="Gallery").click()
    page.wait_for_url("**#label=Pleural+effusion&section=gallery")
    link = page.url

    page.evaluate("location.hash = 'label=Mass'")
    expect(chooser(page)).to_have_value("Mass")
    page.evaluate("location.hash = 'label=unknown'")
    expect(chooser(page)).to_have_value("Mass")
    page.go_back()
    page.go_back()
    expect(chooser(page)).to_have_value("Pleural effusion")

    page.goto("about:blank")
    page.goto(link)
    page.wait_for_selector("html[data-ready]")
    expect(chooser(page)).to_have_value("Pleural effusion")
    expect(page.get_by_role("heading", name="Gallery")).to_be_in_viewport()


def test_a_page_with_one_label_keeps_its_address(pictured: Path, opened: Open) -> None:
    page = opened(pictured)
    expect(page.locator("#chooser")).to_be_hidden()
    page.get_by_role("link", name="Gallery").click()
    expect(page.get_by_role("heading", name="Gallery")).to_be_in_viewport()
    assert page.url.endswith("#gallery")
    assert page.title() == "nightly: chest X-ray run"


def test_all_labels_share_sixty_pictures(several: Path, opened: Open) -> None:
    found = document_in(several)
    assert len(found["pictures"]) == PICTURES == 60
    page = opened(several)
    for part in found["labels"]:
        chooser(page).select_option(part["label"])
        shown = {row for one in part["gallery"] for row in one["rows"]}
        for one in part["gallery"]:
            assert sum(str(row) in found["pictures"] for row in one["rows"]) >= min(2, len(one["rows"]))
        assert page.locator("#gallery li").count() == sum(len(one["rows"]) for one in part["gallery"])
        pictures = page.locator("#gallery li button.picture")
        assert pictures.count() == page.locator("#gallery img.map").count() > 0
        expect(page.locator("#gallery .thumbs.text li").first).to_contain_text(".png")
        expect(page.locator("#gallery")).to_contain_text("The labels share the 60 pictures of this file.")
        for row in shown & set(map(int, found["pictures"])):
            assert part["label"] in found["pictures"][str(row)]["maps"]
    both = next(one["maps"] for one in found["pictures"].values() if len(one["maps"]) > 1)
    assert len(set(both.values())) == len(both)  # each label has its own heatmap


def test_twenty_labels_share_sixty_pictures_evenly() -> None:
    """Each part of each gallery gets a picture in turn. A picture that two parts have counts once."""
    galleries = [
        [{"rows": [label * 100 + part * 12 + rank for rank in range(12)]} for part in range(2)]
        for label in range(20)
    ]
    assert pictured_rows(galleries) == sorted(
        label * 100 + part * 12 + rank
        for label in range(20)
        for part in range(2)
        for rank in range(2 if part == 0 else 1)
    )
    assert pictured_rows([galleries[0]] * 20) == list(range(24))
    assert pictured_rows([[{"rows": []}], []]) == []


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_no_tick_of_a_chart_overlaps_another(several: Path, opened: Open, width: int) -> None:
    page = opened(several, width=width)
    gaps = page.evaluate(
        """() => [...document.querySelectorAll("svg g")].flatMap((axis) => {
            const texts = [...axis.querySelectorAll(":scope > text")];
            const boxes = texts.map((text) => text.getBoundingClientRect());
            return boxes.flatMap((a, i) => boxes.slice(i + 1).map((b) =>
                Math.max(b.left - a.right, a.left - b.right, b.top - a.bottom, a.top - b.bottom)));
        })"""
    )
    assert gaps
    assert min(gaps) >= 4  # pixels


def test_a_map_is_strongest_where_the_network_is(model: Model) -> None:
    """The strongest place of the layer is that of the class activation map, at its place in the thumbnail."""
    data = phantom(1)
    pixels, _ = model.prepare(data)
    cam = model.explain(pixels)["abnormal"]
    layer = np.asarray(map_layer(cam, MAP))
    row, col = np.unravel_index(np.abs(cam).argmax(), cam.shape)
    strongest = np.unravel_index(layer[..., 3].argmax(), layer.shape[:2])
    scale = MAP / np.array(cam.shape)
    assert np.abs(np.array(strongest) / scale - (np.array([row, col]) + 0.5)).max() < 1
    geometry = Preprocessing.from_json(model.card["preprocessing"])
    shown = thumbnail(decode(data), geometry).convert("L").resize((geometry.crop, geometry.crop))
    # The same part of the image.
    assert np.corrcoef(np.asarray(shown).ravel(), pixels[0].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("label", ["abnormal", '<b onclick="x">&"'])
def test_a_key_or_a_label_is_text_and_never_markup(tmp_path: Path, opened: Open, label: str) -> None:
    outcomes = [
        prediction(i, 0.1 * i, label, key=f"{HOSTILE}{i}", warnings=("<i>odd</i>",)) for i in range(1, 9)
    ]
    outcomes.append(prediction(0, None, key=f"{HOSTILE}x", error="<u>bad</u>"))
    references = [Reference(one.key, i % 2 == 0, "<s>", ("<em>",), i) for i, one in enumerate(outcomes)]
    page = opened(
        write(
            tmp_path / "run.html",
            outcomes,
            run=run_of(9, run_id="</title><script>window.pwned=1</script>", model="<b>m</b>:1"),
            labels=[label],
            references=lambda _: Labels(references, ("<em>",)),
            fetch=lambda _: phantom(0),
        )
    )
    page.locator("#gallery button.picture").first.click()
    assert page.evaluate("window.pwned") is None
    assert (
        page.locator(
            "[onerror], [onclick], main b:not(figcaption b), main i, main u, main s, main em"
        ).count()
        == 0
    )
    assert page.locator("img:not([src^='data:'])").count() == 0
    assert sorted(column(page, 1)) == sorted(one.key for one in outcomes)
    expect(page.get_by_role("heading", level=1)).to_have_text("</title><script>window.pwned=1</script>")
    expect(page.locator("#dialog-title")).to_contain_text(HOSTILE)


def test_the_content_security_policy_stops_markup_that_gets_in(tab: Page, pictured: Path) -> None:
    tab.goto(pictured.as_uri())
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        tab.evaluate(
            """async url => {
                document.body.append(Object.assign(document.createElement("script"), { text: "pwned = 1" }));
                document.body.insertAdjacentHTML("beforeend", `<img src="${url}" onerror="pwned = 2">`);
                document.body.insertAdjacentHTML("beforeend", `<div style="background: url(${url})">a</div>`);
                await fetch(url).catch(() => {});
                await new Promise(resolve => setTimeout(resolve, 200));
            }""",
            url,
        )
        with pytest.raises(BlockingIOError):  # nothing connects
            server.accept()
    assert tab.evaluate("window.pwned") is None


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 400)])
@pytest.mark.parametrize("which", ["pictured", "several", "empty"])
def test_axe_finds_nothing_serious(
    request: pytest.FixtureRequest, tmp_path: Path, opened: Open, dark: bool, width: int, which: str
) -> None:
    path = write(tmp_path / "none.html", []) if which == "empty" else request.getfixturevalue(which)
    page = opened(path, width=width, dark=dark)
    page.evaluate((template.NODE_MODULES / "axe-core" / "axe.min.js").read_text())
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")  # of others, only the first place
    assert found["passes"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # no sideways scrolling


@pytest.fixture(scope="session")
def awkward(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """A report with long names and many digits wherever there can be some."""
    label = "Enlarged_Cardiomediastinum_and_pleural_thickening_of_the_left_lung"
    other = label.replace("left", "right")
    outcomes = [
        prediction(i, None, key=f"{PREFIX}{'k' * 300}{i:08d}.png", error="E" * 70)
        if i % 7 == 0
        else Prediction(
            f"{PREFIX}{'k' * 300}{i:08d}.png",
            {name: Decimal(f"{i / 81:.6f}") for name in (label, other)},
            (label, other) if i >= 30 else (),
            ("WARNING_" + "W" * 60, "LOOKS_SIDEWAYS"),
        )
        for i in range(60)
    ]
    references = [
        Reference(one.key, i % 3 == 0, f"patient {i}", ("V" * 60 if i % 2 else "AP",), i)
        for i, one in enumerate(outcomes)
    ]
    return write(
        tmp_path_factory.mktemp("report") / "awkward.html",
        outcomes,
        labels=[label, other],
        run=run_of(
            123_456_789_012,
            run_id="r" * 128,
            model=f"{'m' * 100}:1.0.0",
            source={"kind": "Prefix", "value": "p" * 200},
            thresholds=dict.fromkeys((label, other), Decimal("0.364321")),
        ),
        model=model,
        references=lambda _: Labels(references, ("column_" * 10,)),
        settings=Config().settings(),
        fetch=lambda key: phantom(int(key[-5])) if int(key[-5]) % 2 else None,
    )


@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_never_scrolls_sideways(
    awkward: Path, pictured: Path, several: Path, opened: Open, width: int
) -> None:
    """As wide as it was opened, and after the window was made wider or narrower."""
    for path in (awkward, pictured, several):
        page = opened(path, width=width)
        page.locator("main details").evaluate_all("all => all.forEach((details) => { details.open = true })")
        for now in (width, 320, 360, 400, 600, 761, 901, 1280):
            page.set_viewport_size({"width": now, "height": 900})
            page.evaluate(DRAWN)
            assert page.evaluate("innerWidth") == now
            assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), (path.name, now)


def test_a_printed_report_has_the_disclaimer_and_a_short_table(
    pictured: Path, tmp_path: Path, opened: Open
) -> None:
    page = opened(pictured, dark=True)
    page.get_by_label("a page").select_option("100")
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    page.emulate_media(media="print")
    expect(page.locator("header .disclaimer")).to_be_visible()
    expect(page.locator("header .disclaimer")).to_have_text(RESEARCH_ONLY)
    assert page.locator("#table tbody tr:visible").count() == 20
    expect(page.locator("#print-note")).to_have_text("The first 20 of 300 rows.")
    for away in ("nav[aria-label=Sections]", "#threshold", "#filters", ".gallery-tools"):
        expect(page.locator(away)).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"  # also in dark mode


def test_the_chosen_label_is_printed(several: Path, opened: Open) -> None:
    page = opened(several)
    chooser(page).select_option("Mass")
    page.emulate_media(media="print")
    expect(page.locator("#label")).to_be_hidden()
    expect(page.locator("#chosen")).to_be_visible()
    expect(page.locator("#chosen")).to_have_text("Mass")
    expect(page.locator("#histogram")).to_contain_text("score of Mass")
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_notices_say_what_the_report_holds_and_lacks(tmp_path: Path, opened: Open, pictured: Path) -> None:
    page = opened(pictured)
    expect(page.locator("#notices")).to_contain_text("holds patients' images")
    expect(page.locator("#about")).to_contain_text("Demonstration model")
    expect(page.locator("#about")).to_contain_text("Kinesis, shards")

    plain = write(
        tmp_path / "plain.html",
        [prediction(1, 0.7), prediction(2, 0.2)],
        run=run_of(2, state="CANCELLED", expected=10, completed_at=None),
    )
    assert "data:image" not in plain.read_text()
    page = opened(plain)
    notices = page.locator("#notices")
    expect(notices).to_contain_text("Made without pictures")
    expect(notices).to_contain_text("CANCELLED: 8 images have no prediction")
    expect(notices).to_contain_text("No heatmaps and no model card")
    expect(page.locator("#evaluation")).to_contain_text("without reference labels")
    expect(page.locator("#threshold-source")).to_contain_text("0.7: the lowest score that the results call")


def test_an_alarm_says_that_the_model_was_trained_on_evaluated_images(
    tmp_path: Path, model: Model, opened: Open
) -> None:
    outcomes, labels = cohort(60)
    training_set = TrainingSet.read(SHIPPED)
    assert training_set
    name = fingerprint(outcomes[0].key.rpartition("/")[2])
    known = TrainingSet(frozenset({*training_set.images, name}), training_set.patients)
    page = opened(
        write(tmp_path / "run.html", outcomes, model=model, references=lambda _: labels, training_set=known)
    )
    expect(page.locator(".notice.alarm")).to_contain_text("was trained on 1 of these 50 images")


@pytest.mark.usefixtures("aws")
def test_an_image_that_s3_does_not_give_out_has_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    s3 = client("s3")
    s3.put_object(Bucket=BUCKET, Key="here.png", Body=phantom(0))
    s3.put_object(Bucket=BUCKET, Key="archived.png", Body=phantom(0), StorageClass="GLACIER")
    fetch = fetch_from(STACK)
    found = {name: picture(fetch(f"{name}.png"), ["abnormal"], None) for name in ("here", "archived", "gone")}
    assert (found["here"]["image"][:10], found["here"]["maps"]) == ("data:image", {})
    assert found["archived"] == {"missing": "IMAGE_ARCHIVED"}
    assert found["gone"] == {"missing": "not in the bucket"}
    for code, why in {"InvalidRequest": "IMAGE_CUSTOMER_KEY", "AccessDenied": "AccessDenied"}.items():
        refusal = ClientError({"Error": {"Code": code}}, "GetObject")
        monkeypatch.setattr(BaseClient, "_make_api_call", Mock(side_effect=refusal))
        assert picture(fetch("here.png"), ["abnormal"], None) == {"missing": why}


def test_an_empty_run_and_a_run_of_failures_open(tmp_path: Path, opened: Open) -> None:
    page = opened(write(tmp_path / "none.html", [], run=run_of(0, state="LISTING", expected=None)))
    expect(page.locator("#table tbody")).to_contain_text("This run has no predictions yet")
    page = opened(write(tmp_path / "failed.html", [prediction(i, None) for i in range(3)]))
    expect(page.locator("#histogram")).to_contain_text("No image has a score yet")
    expect(page.locator("#failures-body")).to_contain_text(ErrorCode.IMAGE_CORRUPT.meaning)


def test_labels_of_one_class_leave_out_what_is_not_defined(tmp_path: Path, opened: Open) -> None:
    outcomes = [prediction(i, i / 20) for i in range(20)]
    references = [Reference(one.key, True, None, ("PA",), i) for i, one in enumerate(outcomes)]
    page = opened(write(tmp_path / "run.html", outcomes, references=lambda _: Labels(references, ("view",))))
    expect(page.locator(".charts")).to_contain_text("Not defined: the labels have only one class.")
    expect(page.locator("#evaluation")).to_contain_text("not defined: no negative image")
    assert page.locator("#rate-specificity").inner_text() == NONE
    assert page.locator("#rate-sensitivity").inner_text() == "0.600"


def test_a_report_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.html"
    path.write_text("before")

    def cut_off() -> Iterator[Prediction]:
        yield prediction(1, 0.5)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        document.write(path, run=run_of(2), predictions=cut_off(), labels=["abnormal"])
    with pytest.raises(InputError, match="no scores of mass"):
        write(path, [prediction(1, 0.5)], labels=["mass"])
    monkeypatch.setattr(template, "NODE_MODULES", tmp_path / "node_modules")
    with pytest.raises(InputError, match="`make install` installs it"):
        write(path, [prediction(1, 0.5)])
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


# The command


@pytest.fixture
def command(aws: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """`cxr report` on a stack with a run of two images, one of which is in the bucket."""
    model = Model(SHIPPED)
    dynamodb, s3 = client("dynamodb"), client("s3")
    run: dict[str, Any] = {
        "state": "COMPLETE",
        "model": model.name,
        "model_sha256": model.sha256,
        "expected": 2,
        "source": {"kind": "Keys", "value": "0" * 64},
        "created_at": "2026-11-24T20:10:00+00:00",
        "completed_at": "2026-11-24T20:11:00+00:00",
    }
    begin_run("first", **run)
    for name, score in (("a.png", "0.9"), ("b.png", "0.1")):
        one = Prediction(PREFIX + name, {"abnormal": Decimal(score)}, ("abnormal",) if score == "0.9" else ())
        key = pack(layout.prediction_key("first", one.key))
        dynamodb.put_item(TableName=TABLE, Item=key | pack(one.to_fields()))
    s3.put_object(Bucket=BUCKET, Key=f"{PREFIX}a.png", Body=phantom(1))
    monkeypatch.setattr(Stack, "find", lambda _name: STACK)
    app = typer.Typer()
    app.command()(report_command.report)

    def invoke(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.output

    return invoke


def test_the_command_writes_what_the_table_and_the_bucket_hold(
    command: Callable[..., tuple[int, str]], tmp_path: Path, opened: Open
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("file,abnormal,view\na.png,1,PA\nb.png,0,AP\n")
    out = tmp_path / "first.html"
    code, output = command("first", "--out", str(out), "--labels", str(labels), "--group", "view")
    assert (code, RESEARCH_ONLY in output) == (0, True)
    page = opened(out)
    assert column(page, 1) == [f"{PREFIX}a.png", f"{PREFIX}b.png"]
    assert page.locator("#cell-tp .count").inner_text() == "1"
    assert page.locator("img.map").count() > 0
    expect(page.locator(".placeholder").first).to_contain_text("not in the bucket")

    assert command("first", "--out", str(out), "--no-images")[0] == 0
    assert "data:image" not in out.read_text()
    assert opened(out).locator("img").count() == 0


def test_the_command_reports_all_labels_or_the_one_that_is_named(
    command: Callable[..., tuple[int, str]], tmp_path: Path, opened: Open
) -> None:
    names = ("Mass", "abnormal", "Edema")
    begin_run(
        "several",
        state="COMPLETE",
        model="other:1",
        model_sha256="0" * 64,
        expected=2,
        source={"kind": "Keys", "value": "0" * 64},
        labels=[{"name": name, "threshold": Decimal("0.5")} for name in names],
    )
    RunTable(client("dynamodb"), TABLE).write(
        "several",
        uid("several"),
        [
            Prediction(f"{PREFIX}a.png", dict.fromkeys(names, Decimal("0.9")), names),
            Prediction(f"{PREFIX}b.png", dict.fromkeys(names, Decimal("0.1"))),
        ],
        {},
        {},
    )
    labels = tmp_path / "labels.csv"
    labels.write_text("file,abnormal,Mass\na.png,1,0\nb.png,0,1\n")
    out = tmp_path / "several.html"
    assert command("several", "--out", str(out), "--labels", str(labels))[0] == 0
    page = opened(out)
    assert chooser(page).locator("option").all_inner_texts() == list(names)
    for name, auc in (("Mass", "0.000"), ("abnormal", "1.000")):
        chooser(page).select_option(name)
        expect(page.locator("#evaluation figcaption").first).to_contain_text(f"AUC {auc}")
    chooser(page).select_option("Edema")
    expect(page.locator("#evaluation")).to_contain_text("expected a column Edema of 0 and 1")

    assert command("several", "--out", str(out), "--label", "abnormal")[0] == 0
    page = opened(out)
    expect(page.locator("#chooser")).to_be_hidden()
    expect(page.locator("#notices")).to_contain_text(
        "This report is for abnormal. The run has scores of 3 labels"
    )

    labels.write_text("file,Effusion\na.png,1\n")
    code, output = command("several", "--out", str(out), "--labels", str(labels))
    assert (code, "nor can abnormal, Edema be evaluated" in output) == (2, True)


def test_what_a_run_records_comes_before_the_stack_and_the_scores(tmp_path: Path, opened: Open) -> None:
    outcomes = [prediction(i, i / 20) for i in range(20)]
    recorded = run_of(
        20,
        thresholds={"abnormal": Decimal("0.47"), "mass": Decimal("0.5")},
        settings={"shards": Decimal(7), "prefix": PREFIX},  # as DynamoDB gives them
    )
    page = opened(write(tmp_path / "run.html", outcomes, run=recorded, settings={"shards": 9}))
    expect(page.locator("#threshold-source")).to_have_text(
        "The run's threshold is 0.47: recorded by the run."
    )
    expect(page.locator("#notices")).to_contain_text("scores of 2 labels: abnormal, mass")
    about = page.locator("#about")
    expect(about).to_contain_text("Settings of the stack when the run was created")
    expect(about).to_contain_text("shards7 (not the default)")
    expect(about).to_contain_text("Total")

    page = opened(write(tmp_path / "old.html", outcomes, settings={"shards": 9}))
    expect(page.locator("#about")).to_contain_text("Settings of the stack when this report was written")
    expect(page.locator("#about")).to_contain_text("shards9 (not the default)")

    for settings in ({}, {"shards": "many"}):
        page = opened(write(tmp_path / "none.html", outcomes, settings=settings))
        expect(page.locator("#about")).not_to_contain_text("Settings of the stack when")
        expect(page.locator("#about")).to_contain_text("do not record the stack's settings")


def test_wrong_input_is_answered_in_a_line(command: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    out.write_text("before")
    labels = tmp_path / "labels.csv"
    labels.write_text("file,abnormal\nother.png,1\n")
    for arguments, message in (
        (("second",), "there is no run second"),
        (("first", "--group", "view"), "expected together with --labels"),
        (("first", "--labels", str(labels)), "no scored image has a label"),
        (("first", "--labels", str(tmp_path / "none.csv")), "No such file"),
        (("first", "--label", "mass"), "no label mass; expected abnormal"),
        (("first", "--out", str(tmp_path)), "expected a file"),
        (("first", "--bundle", str(tmp_path)), "expected a bundle's model.json"),
    ):
        code, output = command("--out", str(out), *arguments)
        assert code == 2, output
        assert message in output
        assert output.count("\n") == 1
    assert out.read_text() == "before"


def test_the_forty_x_rays_with_their_labels(
    xrays: list[Path], model: Model, tmp_path: Path, opened: Open
) -> None:
    """Real X-rays with NIH's labels, from bytes to page."""
    root = xrays[0].parents[3]
    outcomes = []
    for path in xrays:
        pixels, warnings = model.prepare(path.read_bytes())
        scores = model.score([pixels])[0]
        outcomes.append(Prediction(str(path.relative_to(root)), scores, model.positive(scores), warnings))
    labels = read_labels(root.parent / "labels.csv", "abnormal", ("view", "sex", "age"))
    page = opened(
        write(
            tmp_path / "forty.html",
            outcomes,
            model=model,
            training_set=TrainingSet.read(SHIPPED),
            references=lambda _: labels,
            settings=Config().settings(),
            fetch=lambda key: (root / key).read_bytes(),
        )
    )
    expect(page.locator("#evaluation")).to_contain_text("40 images of 39 patients")
    expect(page.locator(".notice.alarm")).to_contain_text("was trained on 21 of these 40 images")
    assert page.locator("#evaluation svg[role=img]").count() == 6  # three curves, three columns of groups
    assert page.locator("#gallery img.map").count() >= 40
