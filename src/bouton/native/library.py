"""Compile the loops in C once, and load them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
_FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
# no disk, no home, a compiler or a $CC that is none, a library of something else
_PROBLEMS = (OSError, RuntimeError, ValueError, AttributeError, subprocess.SubprocessError)
_OF_CPU = {"AVX2": _AVX2, "AVX512": _AVX2 + _AVX512}  # by what torch says of it


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops; None where there is no C compiler, or where ``BOUTON_NATIVE=0`` says so.

    The first call on a machine compiles them, in about a second, into ``~/.cache/bouton``. A compiler that
    is there and fails is warned of, and then there are none.
    """
    if os.environ.get("BOUTON_NATIVE") == "0" or os.name != "posix":
        return None
    problem = None
    for threads in (["-fopenmp"], []):  # torch has OpenMP's functions loaded already where it uses them
        try:
            if not (compiler := _compiler()):
                return None
            flags = [*_FLAGS, *_OF_CPU.get(torch.backends.cpu.get_cpu_capability(), []), *threads]
            return _declared(ctypes.CDLL(str(_compiled(compiler, flags))))
        except _PROBLEMS as error:
            problem = f"{error} {getattr(error, 'stderr', '') or ''}".strip()
            if isinstance(error, PermissionError):  # which is no matter of threads
                break
    warnings.warn(
        f"the loops in C cannot be used, and slower operations of torch take their place: {problem}; "
        "set BOUTON_NATIVE=0 to go without them and without this warning",
        stacklevel=2,
    )
    return None


def loops_used() -> str:
    """Which loops are used, ``"in C"`` or those ``"of torch"``, for the records of what was measured."""
    return "of torch" if library() is None else "in C"


def _compiler() -> list[str]:
    found = (shutil.which(name) for name in ("cc", "gcc", "clang"))
    return shlex.split(os.environ.get("CC", "")) or next(([path] for path in found if path), [])


def _compiled(compiler: Sequence[str], flags: Sequence[str]) -> Path:
    """The shared library that a compiler makes of the sources, made now where it is not there yet."""
    sources = sorted(FOLDER.glob("*.c"))
    texts = [path.read_text() for path in [*sources, *sorted(FOLDER.glob("*.h"))]]
    key = hashlib.sha256("\0".join([platform.machine(), *compiler, *flags, *texts]).encode()).hexdigest()[
        :16
    ]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bouton" / "native"
    made = cache / f"{key}.so"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (cache, made):  # or it may run what others have put there
        if path.exists() and (path.stat().st_uid != os.getuid() or path.stat().st_mode & 0o022):
            raise PermissionError(f"others may write to {path}; delete it, or set XDG_CACHE_HOME")
    if made.is_file():
        return made
    with tempfile.TemporaryDirectory(dir=cache) as beside:  # and renamed, so that no half of one lies there
        objects = [f"{path.stem}.o" for path in sources]
        for command in (
            [*compiler, *flags, "-c", *map(str, sources)],
            # without -fopenmp, which would bring a second OpenMP besides that of torch
            [*compiler, "-shared", *objects, "-o", "made.so", "-lm"],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd=beside)
        Path(beside, "made.so").chmod(0o700)
        Path(beside, "made.so").rename(made)
    return made


class Rates(ctypes.Structure):
    """``rates_t`` of rates.h."""

    _fields_ = (
        *(("values", ctypes.c_void_p), ("bytes", ctypes.c_int)),
        *(("scale", ctypes.c_float), ("shift", ctypes.c_float)),
        *(("nodes", ctypes.c_void_p), ("others", ctypes.c_void_p)),
        *(("rows", ctypes.c_int64), ("columns", ctypes.c_int64)),
    )


class Noise(ctypes.Structure):
    """``noise_t`` of rules.c."""

    _fields_ = (
        ("table", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("size", "run", "start", "first", "stride")),
    )


class Sgd(ctypes.Structure):
    """``sgd_t`` of steps.c."""

    _fields_ = (
        *((name, ctypes.c_float) for name in ("lr", "momentum", "fresh", "decay")),
        *(("nesterov", ctypes.c_int), ("sign", ctypes.c_float)),
    )


_ARGUMENTS = {  # p for a tensor, n for a count, f for a number, i for a choice, u for random bits
    "row_sizes": "pnnipi",
    "mean_size": "pnpi",
    "shares": "pnffi",
    "deviate": "pppRi",
    "blend": "ppRi",
    "sgd": "pppSRi",
    "volume_rates": "pnfNpi",
    "crystallize": "pppfpffni",
    "count_beyond": "pnnnfpi",
    "activity": "pppn",
    "pool": "pnnnpi",
    "sum_members": "ppnnnpi",
    "repeat": "ppnnnpi",
    "largest_size": "pnpi",
    "remodel": "pnpfpnuuppi",
    "put_where": "pppni",
    "clear_where": "ppni",
}
_SUMS = {"volume_rates"}
_TYPES = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_int64,
    "f": ctypes.c_float,
    "i": ctypes.c_int,
    "u": ctypes.c_uint32,
    "R": Rates,
    "N": Noise,
    "S": Sgd,
}


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes = [_TYPES[kind] for kind in arguments]
        function.restype = ctypes.c_double if name in _SUMS else None
    return loaded
