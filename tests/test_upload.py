"""A folder of images into the bucket."""

import os
import sys
from pathlib import Path

import boto3
import pytest
from support import BUCKET, PREFIX

from cxr.errors import InputError
from cxr.upload import files_in, upload


def test_sub_folders_are_kept_and_hidden_files_left_out(tmp_path: Path) -> None:
    for name in ("b.png", "ward 3/a.png", ".hidden.png", ".git/a.png", "ward 3/.DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert files_in(tmp_path) == [Path("b.png"), Path("ward 3/a.png")]


def test_a_folder_with_only_hidden_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    with pytest.raises(InputError, match="has no files"):
        files_in(tmp_path)


def test_links_are_followed_to_files_and_not_into_folders(tmp_path: Path) -> None:
    """As the help says: sets of images are made of links, and a folder may lead back to itself."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"a")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set" / "c").symlink_to(tmp_path / "elsewhere")
    assert files_in(tmp_path / "set") == [Path("b.png")]


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(InputError, match=r"gone\.png: this link points to nothing"):
        files_in(tmp_path)


def test_files_are_put_under_the_prefix(aws: None, tmp_path: Path) -> None:
    bodies = {f"deep/{number}.png": str(number).encode() for number in range(20)}
    (tmp_path / "deep").mkdir()
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    s3 = boto3.client("s3")
    assert len(list(upload(s3, BUCKET, PREFIX, tmp_path, files_in(tmp_path)))) == 20
    listed = s3.list_objects_v2(Bucket=BUCKET)["Contents"]
    found = {entry["Key"]: s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read() for entry in listed}
    assert found == {PREFIX + name: body for name, body in bodies.items()}


def test_a_file_that_cannot_be_read_stops_the_upload(aws: None, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(upload(boto3.client("s3"), BUCKET, PREFIX, tmp_path, [Path("gone.png")]))


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no file names but UTF-8")
def test_a_name_that_no_key_can_have_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.png")).write_bytes(b"x")
    with pytest.raises(InputError, match="not UTF-8"):
        files_in(tmp_path)


def test_what_is_there_unchanged_is_not_sent_again(aws: None, tmp_path: Path) -> None:
    for name, body in {"same.png": b"same", "size.png": b"12345", "content.png": b"abc"}.items():
        (tmp_path / name).write_bytes(body)
    s3 = boto3.client("s3")
    files = files_in(tmp_path)
    assert list(upload(s3, BUCKET, PREFIX, tmp_path, files)) == [True] * 3
    (tmp_path / "size.png").write_bytes(b"123456")
    (tmp_path / "content.png").write_bytes(b"abd")
    (tmp_path / "new.png").write_bytes(b"new")
    sent: list[str] = []
    s3.meta.events.register("before-call.s3.PutObject", lambda params, **_: sent.append(params["url_path"]))
    assert sum(upload(s3, BUCKET, PREFIX, tmp_path, files_in(tmp_path))) == 3
    assert sorted(path.rpartition("/")[2] for path in sent) == ["content.png", "new.png", "size.png"]
    listed = s3.list_objects_v2(Bucket=BUCKET)["Contents"]
    found = {entry["Key"]: s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read() for entry in listed}
    assert found == {f"{PREFIX}{file.name}": file.read_bytes() for file in tmp_path.iterdir()}


def test_a_stopped_upload_goes_on_where_it_was(aws: None, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}.png").write_bytes(str(number).encode())
    s3 = boto3.client("s3")
    files = files_in(tmp_path)
    uploading = upload(s3, BUCKET, PREFIX, tmp_path, files)
    next(uploading)
    uploading.close()  # as Ctrl-C does
    there = s3.list_objects_v2(Bucket=BUCKET)["KeyCount"]
    assert 0 < there < 300
    assert sum(upload(s3, BUCKET, PREFIX, tmp_path, files)) == 300 - there
