"""Plain data: skeletons, person tables, boxes, crops and the warp that cuts them."""
