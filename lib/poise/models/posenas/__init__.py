"""PoseNAS: network, cells, operations and genotypes."""
