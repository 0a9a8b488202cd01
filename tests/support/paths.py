"""Folders of the repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"  # recorded figures
SHARED = ROOT.parent / "shared"  # real data next to the repository; may be missing
