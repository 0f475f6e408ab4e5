"""`python -m vla_cache_ros.nodes.parameter_tables > docs/parameters.md`."""

import sys

from vla_cache_ros.nodes.parameter_tables.overview import markdown

sys.stdout.write(markdown())
