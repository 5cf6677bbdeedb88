"""The files that the classifier's image is built from."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).parents[1]
DOCKERFILE = "containers/classifier/Dockerfile"
SHIPPED = PROJECT / "containers" / "classifier" / "model"  # the bundle that ships
IGNORE_FILE = ".dockerignore"  # excludes everything, then allows files by lines that begin with !


@contextmanager
def image_context(bundle: Path) -> Iterator[Path]:
    """The folder to build the image from: this project's, or a copy with another bundle for the block.

    The copy holds only what the image needs. Raises OSError.
    """
    if bundle.resolve() == SHIPPED:
        yield PROJECT
        return
    allowed = [line[1:] for line in (PROJECT / IGNORE_FILE).read_text().splitlines() if line.startswith("!")]
    with tempfile.TemporaryDirectory() as folder:
        for file in (path for pattern in (IGNORE_FILE, *allowed) for path in PROJECT.glob(pattern)):
            copy = Path(folder) / file.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(bundle / file.name if file.parent == SHIPPED else file, copy)
        yield Path(folder)
