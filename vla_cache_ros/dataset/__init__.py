"""LeRobot-layout demonstration datasets: write, read, inspect."""
