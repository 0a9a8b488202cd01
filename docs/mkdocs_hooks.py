"""Add pages made from files of the repository root, and adapt links that leave docs/."""

import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PAGE_OF = {source: page for page, source in PAGES.items()}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)]*)?\)")
IMAGE = re.compile(r"(!\[[^\]]*\])\(docs/([^)]+)\)")
BADGE = re.compile(r"^\[!\[.*\n", re.M)


def site_link(match: re.Match, folder: PurePosixPath) -> str:
    """Return the link as the site needs it; a link to a file outside the site becomes its text."""
    text, path, anchor = match[1], match[2], match[3] or ""
    parts: list[str] = []
    for part in (folder / path).parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    target = "/".join(parts)
    if target in PAGE_OF:
        page = PAGE_OF[target]
    elif target.startswith("docs/"):
        page = target.removeprefix("docs/")
    else:
        return text
    depth = max(len(folder.parts) - 1, 0)
    return f"[{text}]({'../' * depth}{page}{anchor})"


def on_files(files, config):
    """Add the pages of PAGES."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        # badges are images of another host
        text = IMAGE.sub(r"\1(\2)", BADGE.sub("", text))
        text = LINK.sub(lambda match: site_link(match, PurePosixPath()), text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Adapt the links of the pages in docs/."""
    if page.file.src_uri in PAGES:
        return markdown
    folder = PurePosixPath("docs", page.file.src_uri).parent
    return LINK.sub(lambda match: site_link(match, folder), markdown)
