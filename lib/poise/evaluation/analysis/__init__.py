"""Where a result file errs: tools/analyze.py, and the curves of tools/plot_log.py.
docs/analysis.md says what is measured and how.
"""
