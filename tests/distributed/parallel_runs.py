"""Started by torchrun, as users do: plays scenes in several processes, and writes what each of them has.

Usage: torchrun --nproc-per-node N parallel_runs.py KIND FOLDER SCENE ...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from parallel_nets import play
from parallel_resume import resume, save
from parallel_texts import TOLD
from parallel_wrappers import WRAPPERS


def main(kind, folder, *scenes):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1000 * rank + 1)  # ranks share no global randomness
    folder, results, wrap = Path(folder), {}, WRAPPERS[kind]
    for scene in scenes:
        began = time.perf_counter()
        name, _, rest = scene.partition(":")
        if name == "tell":
            results[scene] = TOLD[rest]()
        elif name == "save":
            results[scene] = save(wrap, rank, size, folder / rest)
        elif name == "resume":
            results[scene] = resume(wrap, rank, size, folder / rest)
        else:
            results[scene] = play(scene, wrap, rank, size)
        if rank == 0:
            print(f"{time.perf_counter() - began:6.2f} s {scene}", flush=True)
    torch.save(results, folder / f"{kind}-{size}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
