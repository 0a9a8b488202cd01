"""A synthetic set of people in COCO's or MPII's layout."""
