"""The file modes of the assets that are uploaded."""

from pathlib import Path


def make_assets_readable(assembly: Path) -> None:
    """Let every user read the assets in a folder that the CDK has written: Lambda runs as another user.

    Modes travel into the zip and into the image. Under a strict umask, Git makes files that only their owner
    can read.
    """
    for asset in assembly.glob("asset.*"):
        for path in (asset, *asset.rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))
