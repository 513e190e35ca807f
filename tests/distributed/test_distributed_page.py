"""The script in docs/distributed.md."""

import re
from pathlib import Path

from launch import torchrun

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


def test_its_script_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    script = tmp_path / "train.py"
    script.write_text(code)
    done = torchrun(2, script)
    assert done.returncode == 0, done.stderr
