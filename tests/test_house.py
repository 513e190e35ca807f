"""The table of the house in CONTRIBUTING.md names what there is."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_file_of_the_house_is_there_and_every_room_is_named():
    rows = re.findall(r"^\| (`.+?`) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(.+?)`", row)]
    core = ROOT / "src" / "bouton"
    missing = [name for name in named if not any((base / name).exists() for base in (ROOT, core))]
    assert not missing
    rooms = {path.parent.name for path in core.glob("*/__init__.py")}
    assert rooms <= {Path(name).name for name in named}
