"""Compiles the kernels for a GPU that need not be there, and prints what each one does with memory."""

import itertools
import json
import re
from collections import Counter

import torch

SGD = [
    {"momentum": 0.9 * momentum, "fresh": fresh, "nesterov": nesterov}
    for momentum, fresh, nesterov in [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)]
]
COMMON = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "dampening": 0}


class NoGPU:
    """Stands in for the driver: tells what to compile for, and starts nothing."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Compiling:
    """Stands in for a kernel: compiles what a start would need."""

    def __init__(self, kernel):
        self.kernel, self.made = kernel, []

    def __getitem__(self, grid):
        return lambda *given, **options: self.made.append(self.kernel.warmup(*given, grid=grid, **options))


def main():
    from triton.runtime import driver

    from bouton.fused import SeededRates, launch

    driver.set_active(NoGPU())
    sgd, adamw = Compiling(launch.sgd_kernel), Compiling(launch.adamw_kernel)
    launch.sgd_kernel, launch.adamw_kernel = sgd, adamw
    for dtype, odd in itertools.product([torch.float32, torch.bfloat16, torch.float16], [0, 1]):
        tensors = [torch.zeros(64, 64, dtype=dtype) for _ in range(4)]
        for settings in [None, *SGD]:
            for step in (1, 2, 16, 32, 1000):  # what changes from step to step, and from weight to weight
                seeded = SeededRates((step, 2**32 - step), 0.1 / step, (0.5, 1 + step), odd + 2 * step)
                group = {**COMMON, "lr": 0.1 / step, "maximize": step == 2, **(settings or {})}
                if settings is None:
                    launch.step_adamw(*tensors, group, seeded, step=step)
                else:
                    buffer = tensors[2] if group["momentum"] else None
                    fresh = bool(group["fresh"])
                    group["nesterov"] = bool(group["nesterov"])
                    launch.step_sgd(*tensors[:2], buffer, group, seeded, fresh=fresh)
            kernel = adamw if settings is None else sgd
            compiled, kernel.made = {id(made): made for made in kernel.made}, []
            text = next(iter(compiled.values())).asm["ptx"]
            found = Counter(re.findall(r"\b(?:ld|st)\.(?:global|shared)[\w.]*|cvt\.rn\.bf16", text))
            about = {"dtype": str(dtype), "odd": odd, "settings": settings, "compiled": len(compiled)}
            print(json.dumps({**about, "found": found}))


if __name__ == "__main__":
    main()
