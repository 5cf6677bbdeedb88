"""tools/markdown.py: figures into a page, between their two lines."""

from pathlib import Path

import pytest

from cxr.errors import Failed
from tools.markdown import put_table


def test_a_table_takes_the_place_of_the_last_one_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- soak -->\nold\n<!-- /soak -->\n\nThe end.\n")
    for lost in ("1", "0"):
        put_table(page, "soak", "make soak", [("schedules", "12,345"), ("lost", lost)])
    text = page.read_text()
    assert text.startswith("# Page\n\n<!-- soak -->\n`make soak` on 20")
    assert text.endswith(
        "\n\n| | |\n|---|---:|\n| schedules | 12,345 |\n| lost | 0 |\n<!-- /soak -->\n\nThe end.\n"
    )


def test_a_page_without_the_place_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- wire -->\n")
    with pytest.raises(Failed, match="expected a line <!-- wire --> and, after it, a line <!-- /wire -->"):
        put_table(page, "wire", "make wire", [])
    with pytest.raises(Failed, match="No such file or directory; expected a page"):
        put_table(tmp_path / "none.md", "wire", "make wire", [])
    assert page.read_text() == "<!-- wire -->\n"
