"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from cxr.files import whole_file


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")
    with whole_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), whole_file(tmp_path / "results.csv") as part:  # noqa: PT012 - the block is the point
        part.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_known_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"), whole_file(tmp_path / "gone" / "results.csv"):
        pytest.fail("worked in vain")
