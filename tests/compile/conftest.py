import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))  # nets.py and subjects.py
