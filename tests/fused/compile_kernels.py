"""Compiles the kernels for GPUs that need not be there, and prints what each one does with memory."""

import itertools
import json
import re
import sys
from collections import Counter

import torch
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bouton.fused import kernels
from bouton.fused.launch import _OPTIONS

FLAGS = {
    "sgd_kernel": [
        {"MOMENTUM": momentum, "FRESH": fresh, "NESTEROV": nesterov}
        for momentum, fresh, nesterov in itertools.product([False, True], repeat=3)
    ],
    "adamw_kernel": [{}],
}
TENSORS = "weights", "gradients", "buffers", "means", "squares"
WORDS = "count", "first", "key_0", "key_1"


def compiled(kernel, flags, dtype, capability):
    """One kernel, for weights that begin at a multiple of 16 bytes and have a multiple of 16 entries."""
    signature, constants, aligned = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in flags:
            signature[name], constants[(place,)] = "constexpr", flags[name]
        elif name in TENSORS:
            signature[name] = f"*{dtype}"
        else:
            signature[name] = "i32" if name in WORDS else "fp32"
        if name in (*TENSORS, "count"):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {name: value for name, value in _OPTIONS.items() if name != "BLOCK"}
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main():
    for name, dtype, odd, capability in itertools.product(
        FLAGS, ["fp32", "bf16", "fp16"], [0, 1], [int(given) for given in sys.argv[1:]]
    ):
        for flags in FLAGS[name]:
            every = {**flags, "ODD": odd, "BLOCK": _OPTIONS["BLOCK"]}
            made = compiled(getattr(kernels, name), every, dtype, capability)
            found = re.findall(r"\b(?:ld|st)\.(?:global|shared)[\w.]*|cvt\.rn\.bf16", made.asm["ptx"])
            print(json.dumps({"kernel": name, "dtype": dtype, "odd": odd, **flags, **Counter(found)}))
    assert not torch.cuda.is_initialized()


if __name__ == "__main__":
    main()
