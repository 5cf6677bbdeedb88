"""Files that appear whole or not at all."""

import os
import stat
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


def test_a_new_file_is_its_owners_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    umask = os.umask(0)
    try:
        for mode in (0o600, 0o640, 0o444, 0o666):
            with whole_file(path) as part:
                part.write_text("patients")
                assert stat.S_IMODE(part.stat().st_mode) == 0o600  # also while it is half there
            assert path.read_text() == "patients"
            path.chmod(mode)
            with whole_file(path) as part:
                part.write_text("more")
            assert stat.S_IMODE(path.stat().st_mode) == mode
            path.unlink()
    finally:
        os.umask(umask)


def test_a_link_that_waits_for_the_part_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write to the folder must not choose what is written to: no two parts have one name."""
    (tmp_path / "other.csv").write_text("precious")
    with whole_file(tmp_path / "results.csv") as part:
        part.write_text("first")
    part.symlink_to(tmp_path / "other.csv")
    with whole_file(tmp_path / "results.csv") as part:
        part.write_text("rows")
    assert (tmp_path / "other.csv").read_text() == "precious"
    assert not (tmp_path / "results.csv").is_symlink()


def test_a_pipe_or_a_folder_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match="expected a file"), whole_file(tmp_path / name):
            pytest.fail("worked in vain")
    assert (tmp_path / "pipe").is_fifo()
