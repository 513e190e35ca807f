"""Starts runs in several processes with torchrun, once for all tests that look at them."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from parallel_nets import ALONE, COMBINED
from parallel_texts import TOLD

import bouton

FOLDER = Path(tempfile.mkdtemp(prefix="bouton-distributed-"))
atexit.register(shutil.rmtree, FOLDER)
DETAILS = ["accumulate", "overflow/fused", "overflow/unfused", "by hand", "wrapped later, forward"]
UNEVEN = [
    "mlp/sgd/together",
    "conv/adamw/together",
    "transformer/adamw/otherwise",
    "lookup/adamw/everywhere",
]
OF_COPIES = ["first logs", "wrapped later", "attached inside"]  # where each process holds all weights
# number of processes -> what spreads the model -> scenes
LAUNCHES = {
    2: {
        "ddp": [*ALONE, *DETAILS, *OF_COPIES, "save:ddp-2", "resume:ddp-2"],
        "fsdp": [*ALONE, *COMBINED, *DETAILS, "save:fsdp-2", "resume:fsdp-2"],
    },
    4: {
        "ddp": [*COMBINED, "first logs", "resume:ddp-2"],
        # and no more, because four processes share few cores and wait for each other many times a step
        "fsdp": [*UNEVEN, *(f"tell:{name}" for name in TOLD), "resume:fsdp-2", "save:fsdp-4"],
        "hsdp": ["mlp/sgd/together", "mlp/adamw/gradient", "resume:fsdp-4"],
    },
}


def torchrun(size, script, *arguments, seconds=500):
    """Run a script in ``size`` processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    paths = [str(Path(bouton.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(
        [*command, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment,
    )


def launched(kind, size):
    """What each process has in the end, by scene."""
    results = _launch(size)
    assert not isinstance(results, str), results
    return [result[kind] for result in results]


@functools.cache
def _launch(size):
    """The results, or what went wrong: for all tests that ask, and not once for each."""
    if size == 4:
        _launch(2)  # which saves what is resumed
    scenes = [f"{kind}={scene}" for kind, scenes in LAUNCHES[size].items() for scene in scenes]
    done = torchrun(size, Path(__file__).with_name("parallel_runs.py"), FOLDER, *scenes)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("[rank")]
        return "\n".join([done.stdout, *(errors or [done.stderr])])
    return [torch.load(FOLDER / f"{size}-{rank}.pt") for rank in range(size)]


def played():
    """All that is compared with one process: kind, number of processes, and scene."""
    return [
        (kind, size, scene)
        for size, kinds in LAUNCHES.items()
        for kind, scenes in kinds.items()
        for scene in scenes
        if ":" not in scene
    ]


def check_same(found, expected, tolerance=0.0):
    """The same names, and the same numbers but for a tolerance."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
