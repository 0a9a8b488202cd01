"""Command line of poise.cli.print_config."""

from poise.cli.print_config import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
