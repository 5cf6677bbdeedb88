"""The page without a run: one HTML file, put together from page/ and from libraries in node_modules."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxr import RESEARCH_ONLY
from cxr.errors import InputError

PAGE = Path(__file__).with_name("page")
NODE_MODULES = Path(__file__).parents[2] / "node_modules"
LIBRARIES = {  # npm package -> the file of it that goes into the page
    "d3": "dist/d3.min.js",
    "@observablehq/plot": "dist/plot.umd.min.js",
    "datatables.net": "js/dataTables.min.js",
}


class Template:
    """The page without a run: template, style, script and libraries, all read before a file is written."""

    def __init__(self, html: str) -> None:
        self._before, self._after = html.split("{{data}}")

    @classmethod
    def read(cls) -> Template:
        """Raises InputError if a library is not installed."""
        scripts, licences = [], []
        for name, file in LIBRARIES.items():
            folder = NODE_MODULES / name
            try:
                scripts.append((folder / file).read_text(encoding="utf-8"))
                licence = next(
                    path for path in sorted(folder.iterdir()) if path.name.lower().startswith("licen")
                )
                version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
                licences.append(f"{name} {version}\n\n{licence.read_text(encoding='utf-8').strip()}")
            except (FileNotFoundError, StopIteration):
                raise InputError(
                    f"{folder}: expected the npm package {name}; `make install` installs it"
                ) from None
        scripts.append((PAGE / "page.js").read_text(encoding="utf-8"))
        scripts = [_inline(script) for script in scripts]
        hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
        parts = {
            "policy": "; ".join(
                [
                    "default-src 'none'",
                    f"script-src {' '.join(f'{chr(39)}sha256-{digest}{chr(39)}' for digest in hashes)}",
                    "style-src 'unsafe-inline'",  # Observable Plot puts a style into each chart
                    "img-src data:",
                    "base-uri 'none'",
                    "form-action 'none'",
                ]
            ),
            "disclaimer": RESEARCH_ONLY,
            "style": (PAGE / "page.css").read_text(encoding="utf-8").replace("{{disclaimer}}", RESEARCH_ONLY),
            "licences": _escaped("\n\n\n".join(licences)),
            "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
            "data": "{{data}}",
        }
        template = (PAGE / "template.html").read_text(encoding="utf-8")
        return cls(re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template))

    def write(self, path: Path, document: Mapping[str, Any]) -> None:
        """Write the page with this document in it. Raises OSError."""
        packed = gzip.compress(json.dumps(document, separators=(",", ":")).encode(), compresslevel=6, mtime=0)
        with path.open("w", encoding="utf-8") as file:
            file.write(self._before)
            file.write(base64.b64encode(packed).decode())
            file.write(self._after)


def _inline(script: str) -> str:
    """The script, changed so that no string in it ends its script element."""
    return re.sub(r"<(/script|!--)", r"<\\\1", script.replace("\r\n", "\n"), flags=re.IGNORECASE)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
