"""Makes the modules of `bench/` importable, as its programs see them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "bench"))
