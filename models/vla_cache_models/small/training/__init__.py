"""Training of the small VLA: behaviour cloning on a growing set of demonstrations."""
