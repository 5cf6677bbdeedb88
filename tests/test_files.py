"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from cxr.errors import InputError
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
    with pytest.raises(InputError, match="gone"), whole_file(tmp_path / "gone" / "results.csv"):
        pytest.fail("worked in vain")


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "results.csv")
    with whole_file(tmp_path / "link.csv") as part:
        part.write_text("new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "results.csv").read_text() == "new"


def test_a_pipe_or_a_folder_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match="expected a file"), whole_file(tmp_path / name):
            pytest.fail("worked in vain")
    assert (tmp_path / "pipe").is_fifo()
