"""Command line of poise.cli.demo."""

from poise.cli.demo import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
