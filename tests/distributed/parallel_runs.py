"""Started by torchrun, as users do: plays scenes in several processes, and writes what each of them has.

Usage: torchrun --nproc-per-node N parallel_runs.py FOLDER KIND=SCENE ...
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from parallel_nets import play
from parallel_resume import resume, save
from parallel_texts import TOLD
from parallel_wrappers import WRAPPERS


def main(folder, *scenes):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1000 * rank + 1)  # ranks share no global randomness
    folder, results = Path(folder), {}
    for kind, scene in (scene.split("=", 1) for scene in scenes):
        began, wrap = time.perf_counter(), WRAPPERS[kind]
        name, _, rest = scene.partition(":")
        if name == "tell":
            found = TOLD[rest]()
        elif name == "save":
            found = save(wrap, rank, size, folder / rest)
        elif name == "resume":
            found = resume(wrap, rank, size, folder / rest)
        else:
            found = play(scene, wrap, rank, size)
        results.setdefault(kind, {})[scene] = found
        if rank == 0:
            print(f"{time.perf_counter() - began:6.2f} s {kind} {scene}", flush=True)
    torch.save(results, folder / f"{size}-{rank}.pt")
    dist.destroy_process_group()
    # Some of gloo's threads may still hold tensors: one that lets go while Python ends aborts the process.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
