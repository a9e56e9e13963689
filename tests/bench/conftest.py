"""The benchmarks' own arithmetic; what they measure they measure when they are run."""

from pathlib import Path
from typing import Final

collect_ignore_glob: Final = [] if (Path(__file__).parents[2] / "bench").is_dir() else ["test_*.py"]
"""The benchmarks are not part of every copy."""
