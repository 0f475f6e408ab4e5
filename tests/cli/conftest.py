"""Lets the tests here import `cli_fakes`, in worker processes too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
