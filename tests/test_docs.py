"""The documentation: its tables are what the code says, its links lead somewhere, its examples work."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from classifier.model import Model
from support import ROOT

from cxr.bundles import SHIPPED
from tools.markdown import filled
from tools.tables import TABLES

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("training/**/*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?\)")


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    slugs: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", prose(page), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", LINK.sub("", heading).lower()).replace(" ", "-")
        found.add(f"{slug}-{slugs[slug]}" if slugs[slug] else slug)
        slugs[slug] += 1
    return found


@pytest.mark.parametrize(("page", "name", "make"), TABLES)
def test_a_table_is_what_the_code_says(page: str, name: str, make: Callable[[], str]) -> None:
    path = ROOT / page
    assert path.read_text(encoding="utf-8") == filled(path, name, f"\n{make()}\n"), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_table_of_contents_names_every_page() -> None:
    contents = prose(ROOT / "docs" / "README.md")
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"]({page.name})" in contents, page.name
    decisions = prose(ROOT / "docs" / "how-it-works.md")
    for page in ROOT.glob("docs/decisions/*.md"):
        assert f"](decisions/{page.name})" in decisions, page.name


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def test_every_alarm_links_to_what_to_do() -> None:
    """The runbook's table of alarms is generated; test_monitoring.py looks at the sections."""
    runbook = ROOT / "docs" / "runbook.md"
    assert set(re.findall(r"^\| \[\w+\]\(#(\w+)\)", runbook.read_text(), re.MULTILINE)) <= anchors(runbook)


def test_the_model_json_of_the_docs_is_a_bundle(tmp_path: Path) -> None:
    """It describes the graph that ships; the digest is the only field that may be of an older one."""
    (example,) = re.findall(
        r"^## model\.json\n.*?^```json\n(.*?)^```", (ROOT / "docs" / "models.md").read_text(), re.M | re.S
    )
    shipped = Model(SHIPPED)
    card = json.loads(example) | {"sha256": shipped.sha256}
    (tmp_path / "model.json").write_text(json.dumps(card))
    (tmp_path / "model.onnx").symlink_to(SHIPPED / "model.onnx")
    model = Model(tmp_path)
    assert (model.name, list(model.thresholds)) == ("my-model:1.0.0", ["abnormal"])
