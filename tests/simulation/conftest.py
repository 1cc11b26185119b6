from __future__ import annotations

import sys
from pathlib import Path

# what tests share, and the bug zoo, which is a program of its own
for directory in (Path(__file__).parents[1] / "support", Path(__file__).parents[2]):
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
