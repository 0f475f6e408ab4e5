"""Where camera_node's images come from, and how a source that fails is brought back."""
