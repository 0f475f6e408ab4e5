"""What the Google robot's worker uses of ManiSkill2_real2sim, without a simulator behind it."""

from pathlib import Path

ASSET_DIR = Path('/assets')
