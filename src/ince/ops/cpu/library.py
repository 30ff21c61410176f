"""Finds the compiled kernels and loads them: once, at the first operator that wants them.

The library has a plain C interface and is called through `ctypes`, which lets other Python
threads run meanwhile. It brings no threads: work runs on the OpenMP team of PyTorch, whose
entry point is looked up in the OpenMP library that PyTorch has loaded, and takes as many
threads as `torch.get_num_threads` says.
"""

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from ince.errors import InputError, did_you_mean
from ince.ops.backends import BackendReport, is_reference_only, reporter

__all__ = ["NO_MEMORY", "Library", "active", "instruction_sets", "status", "use_instruction_set"]

_LOG = logging.getLogger("ince.ops")

# Forces an instruction set; the best one that the processor has is taken without it.
_VARIABLE = "INCE_CPU_ISA"

# Names another library than the one beside this file, such as a build with sanitizers.
_PLACE = "INCE_CPU_LIBRARY"

# Of the C interface; see ince_version in kernels/library.cpp.
_VERSION = 2

NO_MEMORY = 2
"""What a function of serving answers that had no memory to work in, and has written nothing."""

_ADDRESS, _COUNT, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
_FLOAT = ctypes.c_float


@dataclass(frozen=True)
class Library:
    """The compiled functions. They take addresses and sizes, and check nothing."""

    instruction_sets: tuple[str, ...]
    """That this processor has and the library was compiled for, best first."""
    runs_in_threads: bool
    """Whether the OpenMP team of PyTorch was found."""
    use: Callable[[bytes], int]
    quantize: Callable[..., int]
    dequantize: Callable[..., object]
    multiply: Callable[..., int]
    norm: Callable[..., object]
    norm_grad: Callable[..., object]
    gated: Callable[..., object]
    gated_grad: Callable[..., object]
    rotate: Callable[..., object]
    cross_entropy: Callable[..., int]
    attention_tiles: Callable[..., object]
    attention: Callable[..., int]
    attention_backward: Callable[..., int]
    step: Callable[..., object]
    quantize_8bit: Callable[..., int]
    dequantize_8bit: Callable[..., object]
    paged_attention: Callable[..., int]
    write_kv: Callable[..., int]
    add_segments: Callable[..., int]
    dense: Callable[..., int]


@dataclass
class _State:
    """What is known of the library in this process."""

    instruction_set: str = ""
    reason: str | None = None
    """Why there is none."""


_STATE = _State()


def active() -> Library | None:
    """The library, or nothing where the reference must do the work.

    Raises:
        InputError: the environment forces an instruction set or a library that is not there.
    """
    return None if is_reference_only() else _library()


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that can be used here, best first; empty without the library."""
    library = _library()
    return () if library is None else library.instruction_sets


def use_instruction_set(name: str | None = None) -> str | None:
    """Use an instruction set from now on, in all threads; without a name, the best.

    Returns:
        The one that was in use before, to go back to; nothing without the library.

    Raises:
        InputError: there is no such instruction set here.
    """
    library = _library()
    if library is None:
        return None
    before = _STATE.instruction_set
    _use(library, library.instruction_sets[0] if name is None else name, "instruction set")
    return before


@reporter
def status() -> BackendReport:
    """What runs on the CPU, for `ince.ops.backends.report`."""
    library = _library()
    if library is None:
        return BackendReport("cpu", "reference", "plain PyTorch", _STATE.reason)
    count = torch.get_num_threads() if library.runs_in_threads else 1
    threads = f"{count} thread{'s' if count > 1 else ''}"
    if not library.runs_in_threads:
        threads += ", as PyTorch's OpenMP was not found"
    return BackendReport("cpu", "cpu", f"{_STATE.instruction_set}, {threads}")


def _use(library: Library, name: str, where: str) -> None:
    if not library.use(name.encode()):
        raise InputError(
            "no such instruction set here",
            where=where,
            got=name,
            expected=", ".join(library.instruction_sets),
            do=did_you_mean(name, library.instruction_sets)
            or "leave it out: the best is used by itself",
        )
    _STATE.instruction_set = name


@lru_cache(maxsize=1)
def _library() -> Library | None:
    try:
        library = _load(_path())
    except OSError as error:
        _STATE.reason = str(error)
        _LOG.warning("the CPU kernels cannot be used, plain PyTorch is: %s", error)
        return None
    forced = os.environ.get(_VARIABLE)
    _use(library, forced or library.instruction_sets[0], _VARIABLE)
    return library


def _path() -> Path:
    if named := os.environ.get(_PLACE):
        if not Path(named).is_file():
            raise InputError(
                "there is no library of kernels", where=_PLACE, got=named, do="leave it out"
            )
        return Path(named)
    folder = Path(__file__).parent
    # CMake names a loadable module .so on Linux and on macOS.
    for suffix in (".so", ".dylib", ".dll"):
        path = folder / f"libince_cpu{suffix}"
        if path.is_file():
            return path
    raise OSError(
        "they were not compiled when ince was installed; install a C++ compiler, then ince again"
    )


def _load(path: Path) -> Library:
    handle = ctypes.CDLL(str(path))

    def function(name: str, *argtypes: type, result: type | None = None) -> Callable[..., int]:
        try:
            found = getattr(handle, name)
        except AttributeError:
            raise OSError(
                f"{path.name} is of an older version of ince and has no {name}; install ince again"
            ) from None
        found.argtypes, found.restype = argtypes, result
        return found

    version = function("ince_version", result=_NUMBER)()
    if version != _VERSION:
        raise OSError(
            f"{path.name} is of another version of ince ({version}, expected {_VERSION});"
            " install ince again"
        )
    team = _openmp_entry()
    function("ince_set_team", _ADDRESS)(team)
    names = ctypes.create_string_buffer(256)
    function("ince_supported", ctypes.c_char_p, _COUNT)(names, len(names))
    # Arguments are those of kernels/library.cpp, in its order.
    search = (_ADDRESS, _NUMBER)
    quantize = (_ADDRESS, _NUMBER, _COUNT, _COUNT, _ADDRESS, *search, *(_ADDRESS,) * 2, _NUMBER)
    parts = (_ADDRESS,) * 5
    dequantize = (*parts, *(_COUNT,) * 5, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER)
    sizes = (_COUNT,) * 3
    tiles = (_ADDRESS, *(_COUNT,) * 5, _ADDRESS, _NUMBER)
    multiply = (_ADDRESS, _NUMBER, *sizes, *parts, _COUNT, *(_ADDRESS,) * 3, _NUMBER)
    # Those of kernels/training.cpp. Rows: an address, the distance between rows, a type.
    rows, size = (_ADDRESS, _COUNT, _NUMBER), (_COUNT, _COUNT)
    norm = (*rows, _ADDRESS, _NUMBER, _FLOAT, *size, _ADDRESS, _NUMBER, _ADDRESS, _NUMBER)
    norm_grad = (*rows * 2, _ADDRESS, _ADDRESS, *size, *(_ADDRESS, _COUNT) * 2, _NUMBER)
    gated = (*(_ADDRESS, _COUNT) * 2, _NUMBER, _NUMBER, *size, _ADDRESS, _NUMBER)
    gated_grad = (*(_ADDRESS, _COUNT) * 3, _NUMBER, _NUMBER, *size, _NUMBER)
    tables = (_ADDRESS, _ADDRESS, _COUNT, _COUNT, _NUMBER)
    rotate = (_ADDRESS, _ADDRESS, _NUMBER, *tables, *(_COUNT,) * 4, _NUMBER, _NUMBER)
    losses = (_FLOAT, _FLOAT, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER)
    packed = (ctypes.c_char_p, _NUMBER)
    return Library(
        instruction_sets=tuple(names.value.decode().split()),
        runs_in_threads=team is not None,
        use=function("ince_use", ctypes.c_char_p, result=_NUMBER),
        quantize=function("ince_quantize", *quantize, result=_NUMBER),
        dequantize=function("ince_dequantize", *dequantize),
        multiply=function("ince_multiply", *multiply, result=_NUMBER),
        norm=function("ince_norm", *norm),
        norm_grad=function("ince_norm_grad", *norm_grad),
        gated=function("ince_gated", *gated),
        gated_grad=function("ince_gated_grad", *gated_grad),
        rotate=function("ince_rotate", *rotate),
        cross_entropy=function(
            "ince_cross_entropy", *rows, _ADDRESS, *size, *losses, result=_COUNT
        ),
        attention_tiles=function("ince_attention_tiles", *tiles),
        attention=function("ince_attention", _ADDRESS, _NUMBER, result=_NUMBER),
        attention_backward=function("ince_attention_backward", _ADDRESS, _NUMBER, result=_NUMBER),
        step=function("ince_step", _ADDRESS, _NUMBER),
        quantize_8bit=function("ince_quantize_8bit", _ADDRESS, _NUMBER, result=_NUMBER),
        dequantize_8bit=function("ince_dequantize_8bit", _ADDRESS, _NUMBER),
        # Those of kernels/serving.h, each as packed bytes.
        paged_attention=function("ince_paged_attention", *packed, result=_NUMBER),
        write_kv=function("ince_write_kv", *packed, result=_NUMBER),
        add_segments=function("ince_add_segments", *packed, result=_NUMBER),
        dense=function("ince_dense", *packed, result=_NUMBER),
    )


def _openmp_entry() -> int | None:
    """The address of GOMP_parallel in the OpenMP library that PyTorch runs on.

    GNU's library has it, and so have those of LLVM and Intel. A library is looked at only when
    it is loaded already: a second OpenMP in one process would bring a second team.
    """
    for handle in _openmp_libraries():
        try:
            return ctypes.cast(handle.GOMP_parallel, _ADDRESS).value
        except AttributeError:
            continue
    return None


def _openmp_libraries() -> Iterator[ctypes.CDLL]:
    if sys.platform == "win32":
        return
    root = Path(torch.__file__).parent
    for folder in (root / "lib", root.parent / "torch.libs"):
        for path in sorted(folder.glob("lib*omp*")):
            try:
                yield ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_NOLOAD)
            except OSError:
                continue
    yield ctypes.CDLL(None)
