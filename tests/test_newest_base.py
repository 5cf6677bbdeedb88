"""`make base-image`: the setting that pins the newest base of the image."""

import tomllib
from pathlib import Path

import pytest

from stacks.config import Config
from tools.newest_base import default_base, main

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A client that writes down its commands, and has one image."""
    script = tmp_path / "docker"
    name = "public.ecr.aws/lambda/python"
    script.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\necho {name}@{DIGEST}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("sys.argv", ["newest_base"])
    return tmp_path / "asked"


def test_it_asks_the_registry_and_prints_a_line_of_the_settings_file(
    docker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main()
    settings = tomllib.loads(capsys.readouterr().out)
    assert Config.from_context(settings).base_image == f"{default_base()}@{DIGEST}"
    assert docker.read_text().splitlines()[0] == f"pull --quiet {default_base()}"


def test_it_says_that_docker_is_not_there(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="Docker did not pull "):
        main()
