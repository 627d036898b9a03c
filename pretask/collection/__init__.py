"""Collections of images by their frozen features: stored features, nearest neighbors, duplicates."""
