"""Draw docs/report-*.png from a report that `cxr report` wrote: python -m tools.report_pictures RUN.html

docs/results.md has the command that writes this report. It needs Chromium, and pdftoppm of poppler-utils for
the printed pages.
"""

import io
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from runs.codes import ErrorCode
from runs.predictions import Prediction
from runs.run import State

from cxr.report_page import document
from cxr.runs import RunStatus

DOCS = Path(__file__).parents[1] / "docs"
MANY = 113_178  # images of the run in report-table.png, whose scores are drawn at random
SHEETS, SHEET_HEIGHT, GAP = 3, 714, 10  # of report-print.png; pixels


def main(report: Path) -> None:
    """Draw all pictures."""
    with sync_playwright() as playwright, TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        with opened(browser, report, width=1280, height=1480) as page:
            save("light", page.screenshot())
        with opened(browser, report, width=1100, height=840, color_scheme="dark") as page:
            page.locator("#gallery").evaluate("section => scrollTo(0, section.offsetTop - 115)")
            page.wait_for_function("[...document.images].every(image => image.complete)")
            save("dark", page.screenshot(), photographs=True)
        with opened(browser, report, width=400, height=1100) as page:
            save("narrow", page.screenshot())
        with opened(browser, report, width=1280, height=900) as page:
            pdf = Path(folder) / "report.pdf"
            page.pdf(path=pdf, prefer_css_page_size=True)
            save("print", sheets(pdf), photographs=True)
        many = Path(folder) / "many.html"
        write_many(many)
        with opened(browser, many, width=1280, height=900) as page:
            page.locator("#filters").get_by_label("Outcome").select_option("failed")
            page.locator("#filters").get_by_label("Search keys").fill("0012")
            page.locator("#predictions").evaluate("section => scrollTo(0, section.offsetTop - 65)")
            save("table", page.screenshot())
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, *, width: int, height: int, **options: Any) -> Iterator[Page]:
    """A page of this size in pixels with the report in it, drawn."""
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    page.close()


def save(name: str, png: bytes, *, photographs: bool = False) -> None:
    """Write a picture. Without photographs 256 colours are enough, and a third of the bytes."""
    path = DOCS / f"report-{name}.png"
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    (picture if photographs else picture.quantize()).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


def sheets(pdf: Path) -> bytes:
    """The first pages of a PDF side by side, as PNG."""
    command = ["pdftoppm", "-png", "-l", str(SHEETS), "-scale-to-y", str(SHEET_HEIGHT), "-scale-to-x", "-1"]
    subprocess.run([*command, pdf, pdf.with_suffix("")], check=True)  # noqa: S603 - ours
    pages = [Image.open(path) for path in sorted(pdf.parent.glob(f"{pdf.stem}-*.png"))]
    width = sum(page.width + GAP for page in pages) - GAP
    together = Image.new("RGB", (width, SHEET_HEIGHT), "#c8c8c8")
    left = 0
    for page in pages:
        together.paste(page, (left, 0))
        left += page.width + GAP
    file = io.BytesIO()
    together.save(file, "PNG")
    return file.getvalue()


def write_many(path: Path) -> None:
    """Write the report of a large run without pictures."""
    random = np.random.default_rng(0)
    errors = [str(code) for code in ErrorCode]
    predictions = []
    for number, score in enumerate(random.beta(2, 3, MANY).round(6).tolist()):
        key = f"cxr-nih/generated/{number // 10_000:03}/{number // 4:08}_{number % 4:03}.png"
        if number % 250 == 7:
            predictions.append(Prediction(key, error=errors[number // 250 % len(errors)]))
        else:
            positive = ("abnormal",) if score >= 0.5 else ()
            predictions.append(Prediction(key, {"abnormal": Decimal(str(score))}, positive))
    begun = datetime(2026, 11, 24, 20, 10, tzinfo=UTC)
    run = RunStatus(
        run_id="generated",
        uid="u",
        state=State.COMPLETE,
        model="generated:1.0.0",
        expected=MANY,
        counts=Counter(SCORED=MANY),
        source={"kind": "Prefix", "value": "cxr-nih/generated/"},
        created_at=begun,
        completed_at=begun + timedelta(minutes=8),
    )
    document.write(path, run=run, predictions=predictions, labels=["abnormal"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
