"""Lets the tests here import the command line's fakes, in worker processes too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / 'cli'))
