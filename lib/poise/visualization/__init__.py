"""Drawings of skeletons and heatmaps, charts, HTML pages and text tables."""
