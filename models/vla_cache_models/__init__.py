"""Models: decoder with partial-token forward, the small VLA, loaders, training."""
