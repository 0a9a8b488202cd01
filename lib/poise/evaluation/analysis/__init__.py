"""Error analysis of result files (tools/analyze.py) and training curves (tools/plot_log.py).

See docs/analysis.md.
"""
