"""The gate: whitened features, k-means, and the partition it makes."""
