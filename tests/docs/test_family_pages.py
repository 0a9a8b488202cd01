"""Test docs/families: every key, file, command and weight file exists."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from poise.config import diff
from poise.config.defaults import default_config
from poise.models import MODELS
from support.paths import ROOT

PAGES = sorted((ROOT / "docs/families").glob("*.md"))
GROUPS = "MODEL|LOSS|DATASET|TRAIN|TEST|CUDNN|DEBUG"


def here(page):
    """The page without what it says of the other repository: the first cells of the table 'original
    | Poise', and what is under 'coming from'.
    """
    text, _, coming = page.read_text(encoding="utf-8").partition("\n## Coming from")
    rows = [
        line.split(" | ", 1)[1]
        for line in coming.splitlines()
        if line.startswith("| ") and " | " in line
    ]
    assert len(rows) > 8, f"{page.name} has no table of old and new commands"
    return text + "\n" + "\n".join(rows)


def test_family_pages_cover_every_family():
    assert [page.stem for page in PAGES] == ["hrnet", "moganet", "mspn", "posenas", "res2net"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
class TestPage:
    def test_keys(self, page):
        known = {key for key, _ in diff.flatten(default_config())} | {"MODEL.EXTRA"}
        known |= {f"MODEL.EXTRA.{key}" for model in MODELS.values() for key in model.extra_keys}
        named = set(re.findall(rf"\b(?:{GROUPS})\.[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*\b", here(page)))
        named |= set(re.findall(r"`([A-Z][A-Z_]+) [\"\d(A-Z]", here(page)))  # GPUS "(0,1)"
        assert len(named) > 5 and named <= known, named - known

    def test_files(self, page):
        text = here(page)
        named = set(re.findall(r"(?:experiments|tools|lib|tests)/[\w./-]+[\w/]", text))
        assert named and all((ROOT / path).exists() for path in named), [
            path for path in named if not (ROOT / path).exists()
        ]
        modules = set(re.findall(r"`(\w+\.py)`", text))
        assert all(list((ROOT / "lib/poise/models").rglob(name)) for name in modules), modules
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
        assert links and all((page.parent / link).is_file() for link in links), links

    def test_options_of_tools(self, page):
        commands = re.findall(r"`[^`]*?(tools/\w+\.(?:py|sh)[^`]*)`", here(page))
        shared = (ROOT / "lib/poise/cli/arguments.py").read_text()
        for command in commands:
            tool = Path(command.split()[0])
            source = (
                ROOT / "lib/poise/cli" / tool.name if tool.suffix == ".py" else ROOT / tool
            ).read_text()
            for option in re.findall(r"--[\w-]+", command):
                assert option in source or option in shared, f"{option} of {command}"

    def test_released_weights(self, page):
        groups = yaml.safe_load((ROOT / "models/zoo.yaml").read_text())
        released = {file["name"] for group in groups for file in group["files"]}
        named = set(
            re.findall(
                r"`((?:mmpose_)?(?:resnet|res2net|hrnet|mspn|posenas|moganet)\d*_[a-z\d_]+)`",
                here(page),
            )
        )
        for command in re.findall(r"download_weights\.py ([^`]*)", here(page)):
            named.update(word for word in command.split() if not word.startswith("-"))
        named -= {"pose_resnet", "pose_res2net"}
        assert named and named <= released, named - released

    def test_figure(self, page):
        svg = ElementTree.parse(page.with_suffix(".svg")).getroot()
        _, _, width, height = map(float, svg.get("viewBox").split())
        texts = [element for element in svg.iter() if element.tag.endswith("}text")]
        assert len(texts) > 20 and f"]({page.stem}.svg)" in page.read_text(encoding="utf-8")
        assert all(
            0 <= float(element.get("x")) <= width and 0 < float(element.get("y")) <= height
            for element in texts
        )
        # for those who cannot see it
        assert any(element.tag.endswith("}desc") and element.text for element in svg)

    def test_results_are_published_and_complete(self, page):
        """The tables hold published figures without empty cells, and the page says so."""
        text = page.read_text(encoding="utf-8")
        tables = [
            table.splitlines()
            for table in re.findall(r"(?:^\|.*\n)+", text, re.M)
            if "| AP |" in table or "| Head |" in table
        ]
        assert len(tables) >= (1 if page.stem == "moganet" else 2)
        for table in tables:
            rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in table]
            assert {len(row) for row in rows} == {len(rows[0])}
            assert all(all(row) for row in rows)
        assert "No row has been measured with this code yet." in text
