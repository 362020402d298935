"""What MkDocs is told beyond its configuration: pages that live at the root of the repository, and formulas.

README, CONTRIBUTING and CHANGELOG are pages of the site as they stand; their links into `docs/` are made the site's.
Formulas are written in LaTeX and become MathML here, so that no script has to draw them.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PLAIN = ("LICENSE", "CITATION.cff", "constraints.txt")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files of the repository's root."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=_as_page((ROOT / name).read_text(encoding="utf-8"))))
    for name in PLAIN:
        files.append(File.generated(config, f"{name}.txt" if "." not in name else name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> None:
    """Home and pages of a section or two have no table of contents, so that commands and tables have room."""
    if page.is_homepage or markdown.count("\n## ") < 3:
        page.meta["hide"] = ["toc"]


def on_page_content(content: str, **_: Any) -> str:
    """Turn every formula into MathML."""
    return _FORMULA.sub(_as_mathml, content)


def _as_page(text: str) -> str:
    for name, page in PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text.replace("](LICENSE)", "](LICENSE.txt)").replace("](docs/", "](")


def _as_mathml(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    return convert(html.unescape(match[2]).strip(), display=display)
