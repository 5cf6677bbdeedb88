"""The documentation: its tables are what the code says, its links lead somewhere, its examples work."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from classifier.model import Model
from classifier.preprocessing import Preprocessing
from support import ROOT

from cxr.bundles import self_test
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


def test_the_bundle_of_the_docs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model.json has every field of the tables, and describes the graph that the page's Python writes."""
    page = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "model.json").write_text(example)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/bundle.md", "exec"), {})
    model = Model(tmp_path, trial=True)
    for score, expected in self_test(model).values():
        assert score == pytest.approx(expected, abs=1e-3)
    rows = re.findall(r"^\| (`.+?) \| (?:yes|no) \|", page, re.MULTILINE)
    assert {name for row in rows for name in row.split(", ")} == {f"`{field}`" for field in model.card}
    fields = re.findall(r"^\| `(\w+)` \| (?:required|`[^`]+`) \|", page, re.MULTILINE)
    assert set(fields) == model.card["preprocessing"].keys() == Preprocessing.__dataclass_fields__.keys()
