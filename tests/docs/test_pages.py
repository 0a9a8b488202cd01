"""Commands, keys, files and links of docs/*.md exist, and lines keep to 100 columns."""

import re
import shlex
from pathlib import Path

import pytest
from poise.config import diff
from poise.config.defaults import default_config
from poise.models import MODELS
from support.paths import ROOT

PAGES = sorted([ROOT / "CONTRIBUTING.md", ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# files of the examples for a dataset of one's own
EXAMPLES = ("experiments/hands/",)
SHARED_OPTIONS = (ROOT / "lib/poise/cli/arguments.py").read_text(encoding="utf-8")


def commands(text):
    """Return the words of each command in the page's bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(("python ", "tools/", "make"))]


def source_of(tool):
    """Return the source that defines the options of a script."""
    path = Path(tool)
    if path.parent.name == "tools" and path.suffix == ".py":
        path = Path("lib/poise/cli", path.name)
    return (ROOT / path).read_text(encoding="utf-8")


def config_keys():
    known = {key for key, _ in diff.flatten(default_config())}
    known.add("DATASET.MIX")  # a group without keys of its own
    return known | {f"MODEL.EXTRA.{key}" for model in MODELS.values() for key in model.extra_keys}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
class TestPage:
    def test_commands_exist(self, page):
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        for words in commands(page.read_text(encoding="utf-8")):
            if words[0] == "make":
                for target in (word for word in words[1:] if "=" not in word):
                    assert re.search(rf"^{target}:", targets, re.M), target
                continue
            tool = words[1] if words[0] == "python" else words[0]
            source = source_of(tool)
            for option in (word for word in words if word.startswith("--")):
                assert option in source or option in SHARED_OPTIONS, f"{option} of {words}"

    def test_files_exist(self, page):
        text = page.read_text(encoding="utf-8").partition("## Coming from")[0]
        paths = re.findall(r"\b(?:experiments|tools|lib|tests|benchmarks|fuzz)/[\w./-]*\w", text)
        missing = [
            path
            for path in paths
            if not path.startswith(EXAMPLES)
            and not (ROOT / path).exists()
            and not list(ROOT.glob(f"{path}*"))
        ]
        assert missing == []

    def test_config_keys_exist(self, page):
        if page.name == "faults.md":
            pytest.skip("quotes messages about unknown keys")
        groups = "MODEL|LOSS|DATASET|TRAIN|TEST|CUDNN|DEBUG|SEARCH"
        text = page.read_text(encoding="utf-8").partition("## Coming from")[0]
        named = re.findall(rf"(?<![\w.])(?:{groups})\.[A-Z][A-Z0-9_]+(?:\.[A-Z0-9_]+)*", text)
        known = config_keys()
        groups_of_known = {key.rsplit(".", 1)[0] for key in known}
        assert [key for key in named if key not in known and key not in groups_of_known] == []

    def test_links_exist(self, page):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
        assert [link for link in links if not (page.parent / link).exists()] == []

    def test_lines_have_at_most_100_columns(self, page):
        """Tables, addresses, generated parts and file names cannot be broken."""
        text = re.sub(
            r"<!-- \w+: begin.*?end -->", "", page.read_text(encoding="utf-8"), flags=re.S
        )
        lines = [line for line in text.splitlines() if not line.startswith("|")]
        long = [line for line in lines if len(line) > 100 and " " in line.strip()]
        unbreakable = r"https?://|keypoints_val2017_results|codec.decode"
        assert [line for line in long if not re.search(unbreakable, line)] == []

    def test_page_opens_with_purpose(self, page):
        """A title, then prose; a command or a table follows."""
        lines = page.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# ") and lines[1] == "" and lines[2][0] not in "|#"


def test_site_lists_every_page():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f": {page}\n" not in listed] == []
