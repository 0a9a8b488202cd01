"""Command line of poise.cli.plot_log."""

from poise.cli.plot_log import main
from poise.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
