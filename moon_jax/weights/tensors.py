"""Folders of safetensors: any slice of any tensor read by itself; tensor_writer.py writes them.

A file is read with pread, never mapped: mapped pages count as memory of the process, and a folder on a network disk
that goes away is an error here instead of a SIGBUS. Nothing of a file is believed before it is checked, because the
file may come from a stranger.
"""

import collections
import contextlib
import itertools
import math
import os
import pathlib
import stat
import weakref

import ml_dtypes
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from moon_jax.data.strict_json import unique_json
from moon_jax.weights.source import Index, WeightsError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {  # as safetensors names them
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
MAX_HEADER_BYTES = 32 << 20  # 200,000 tensors; the header is parsed in memory
_SEEK_BYTES = 256 << 10  # that many are read in the time of a seek: short gaps are read over and cut out in memory
_BUFFER_BYTES = 8 << 20  # of that


class Tensors(contextlib.AbstractContextManager):
    """The tensors of a folder, from one file or from shards; the files stay open until the block is left.

    Opening reads and checks only the headers. Reading is safe from several threads.

    Attributes:
        folder: where they are.
        shapes: shape of every tensor, by name.
        dtypes: safetensors dtype of every tensor, by name.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        """Opens the files and checks their headers.

        Args:
            folder: holds model.safetensors, or shards with model.safetensors.index.json.

        Raises:
            WeightsError: nothing to read, pickle files only, broken files, links that lead out of the folder, or
                shards that disagree with their index; names everything that is wrong.
        """
        self.folder = pathlib.Path(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._places: dict[str, tuple[int, int]] = {}  # file descriptor, offset in the file
        with contextlib.ExitStack() as stack:
            self._open(stack)
            self._close = weakref.finalize(self, stack.pop_all().close)

    def __exit__(self, *exception) -> None:
        self._close()
        self._places.clear()

    def read(self, name: str, index: Index = (), shape: tuple[int, ...] | None = None) -> Shaped[np.ndarray, "..."]:
        """Returns a slice of a tensor as it is stored (bfloat16 as ml_dtypes'), in memory of its own.

        Args:
            name: of the tensor.
            index: slices of the leading axes, with step 1; () = all of it.
            shape: to see the tensor in, the same numbers in the same order; None = its own. The index is of this shape.

        Raises:
            WeightsError: another dtype than float32, bfloat16 and float16, or the file became shorter meanwhile.
        """
        if self.dtypes[name] not in DTYPES:
            raise WeightsError(
                f"{name} in {self.folder} is stored as {self.dtypes[name]}; known are {', '.join(DTYPES)}"
            )
        shape = self.shapes[name] if shape is None else shape
        if math.prod(shape) != math.prod(self.shapes[name]) or len(index) > len(shape):
            raise ValueError(f"{name} {list(self.shapes[name])} cannot be read as {list(shape)}{list(index)}")
        bounds = [s.indices(n) for s, n in zip(index, shape, strict=False)]
        if any(step != 1 for _, _, step in bounds):
            raise ValueError(f"{name}: slices must have step 1, got {index}")
        bounds = [(start, max(start, stop)) for start, stop, _ in bounds] + [(0, n) for n in shape[len(index) :]]
        fd, offset = self._places[name]
        try:
            return _read_box(fd, offset, shape, bounds, DTYPES[self.dtypes[name]])
        except (OSError, EOFError) as error:
            raise WeightsError(f"{name} cannot be read from {self.folder}: {error}") from None

    def _open(self, stack: contextlib.ExitStack) -> None:
        index = _read_index(self.folder)
        shards = [SINGLE] if index is None else list(dict.fromkeys(index.values()))
        owners: dict[str, list[str]] = collections.defaultdict(list)
        problems: list[str] = []
        for shard in shards:
            try:
                path = regular_file(self.folder, shard)
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                start, header = _read_header(fd)
                with safe_open(path, framework="numpy"):  # what other programs refuse, we refuse too
                    pass
            except FileNotFoundError:
                problems.append(f"{shard} is not there")
                continue
            except WeightsError as error:
                problems.append(str(error))
                continue
            except (OSError, ValueError, SafetensorError) as error:
                problems.append(f"{shard} is broken or cut short: {error}")
                continue
            for name, (dtype, shape, offset) in header.items():
                self.shapes[name], self.dtypes[name] = shape, dtype
                self._places[name] = (fd, start + offset)
                owners[name].append(shard)
        problems += [f"{name} is in several shards: {', '.join(s)}" for name, s in owners.items() if len(s) > 1]
        if index is not None and not problems:
            problems += [f"{n} is not in {s}, where the index has it" for n, s in index.items() if owners.get(n) != [s]]
            problems += [f"{n} is in {s[0]}, but not in the index" for n, s in owners.items() if n not in index]
        if problems:
            raise _error(self.folder, problems)


def regular_file(folder: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Returns the path of a file of a folder, all links followed.

    A link may lead to a file of the same folder or, in a snapshot of a Hugging Face download cache (`models--x--y/
    snapshots/<revision>`), to the `blobs` of the same cache, which is what a download makes. Everywhere else it would
    let a folder from a stranger name any file of this machine.

    Args:
        folder: may be a link itself.
        name: plain file name.

    Raises:
        WeightsError: a link that leads out of the folder, or not a regular file (a pipe would be waited for).
        OSError: FileNotFoundError where there is none, or a link that leads to itself.
    """
    home = pathlib.Path(folder).resolve()
    path = pathlib.Path(os.path.realpath(home / name, strict=True))
    allowed = [home]
    for parent in (home, *home.parents):
        if parent.parent.name == "snapshots":
            allowed.append(parent.parent.parent / "blobs")
    if not any(path.is_relative_to(place) for place in allowed):
        raise WeightsError(f"{name} is a link that leads out of the folder, to {path}: put the file itself there")
    if not stat.S_ISREG(path.stat().st_mode):
        raise WeightsError(f"{name} is not a regular file")
    return path


def _read_header(fd: int) -> tuple[int, dict[str, tuple[str, tuple[int, ...], int]]]:
    """Returns (where the data starts, {name: (dtype, shape, offset behind that)}) of a safetensors file.

    Raises:
        ValueError: what is wrong with it.
    """
    size = os.fstat(fd).st_size
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"{size} bytes cannot hold its header")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    buffer = np.empty(length, np.uint8)
    _pread(fd, buffer, 8)
    header = unique_json(buffer.tobytes())
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        try:
            dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"{name} has no dtype, shape and data_offsets") from None
        if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in (*shape, start, end)):
            raise ValueError(f"{name} has a dtype, shape or data_offsets that cannot be")
        if dtype in DTYPES and end - start != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"{name} has {end - start} bytes, which is not {dtype} {list(shape)}")
        tensors[name] = (dtype, shape, start)
        spans.append((start, end, name))
    position = 0
    for start, end, name in sorted(spans):
        if start != position or end < start:
            raise ValueError(f"the bytes of {name} overlap others or leave a gap")
        position = end
    if position != size - 8 - length:
        raise ValueError(f"the header describes {position} bytes, the file has {size - 8 - length}")
    return 8 + length, tensors


def _read_box(
    fd: int, offset: int, shape: tuple[int, ...], bounds: list[tuple[int, int]], dtype: np.dtype
) -> np.ndarray:
    """Returns the box with these (start, stop) per axis of an array that is stored at an offset."""
    out = np.empty([stop - start for start, stop in bounds], dtype)
    if not out.size:
        return out
    strides = [math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))]
    cut = max((a + 1 for a, (b, n) in enumerate(zip(bounds, shape, strict=True)) if b != (0, n)), default=0)
    if cut == 0:
        _pread(fd, out.reshape(-1).view(np.uint8), offset)
        return out
    # axes before `axis` are sought one by one; its own range is one stretch of the file, read as a whole
    axis = min(range(cut), key=lambda a: math.prod(out.shape[:a]) * (_SEEK_BYTES + out.shape[a] * strides[a]))
    inner = tuple(slice(*b) for b in bounds[axis + 1 :])
    first, last = bounds[axis]
    step = last - first if axis == cut - 1 else max(1, _BUFFER_BYTES // strides[axis])
    for outer in itertools.product(*(range(*b) for b in bounds[:axis])):
        base = offset + sum(i * s for i, s in zip(outer, strides, strict=False))
        place = out[tuple(i - b[0] for i, b in zip(outer, bounds, strict=False))]
        for start in range(first, last, step):
            stop = min(start + step, last)
            target = place[start - first : stop - first]
            piece = target if axis == cut - 1 else np.empty((stop - start, *shape[axis + 1 :]), dtype)
            _pread(fd, piece.reshape(-1).view(np.uint8), base + start * strides[axis])
            if piece is not target:
                target[...] = piece[:, *inner]
    return out


def _pread(fd: int, buffer: np.ndarray, offset: int) -> None:
    view, done = memoryview(buffer), 0
    while done < len(view):
        got = os.preadv(fd, [view[done : done + (1 << 30)]], offset + done)
        if not got:
            raise EOFError(f"the file ends {len(view) - done} bytes too early")
        done += got


def _read_index(folder: pathlib.Path) -> dict[str, str] | None:
    """Returns {tensor name: shard} of a sharded folder, None for a single file."""
    path = folder / INDEX
    if not path.exists():
        _check_single(folder)
        return None
    try:
        index = unique_json(regular_file(folder, INDEX).read_bytes())["weight_map"]
        shards = list(dict.fromkeys(index.values()))
    except WeightsError as error:
        raise _error(folder, [str(error)]) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} is no index of shards (an object with a 'weight_map'): {error!r}") from None
    problems = [
        f"{INDEX} names the shard {shard!r}; it must be the plain name of a .safetensors file in the folder"
        for shard in shards
        if not isinstance(shard, str) or set(shard) & set("/\\:\0") or not shard.endswith(".safetensors")
    ]
    if not shards:
        problems.append(f"{INDEX} is empty")
    if (folder / SINGLE).exists() and SINGLE not in shards:
        problems.append(f"both {SINGLE} and {INDEX} are there, which may be two models: remove one of them")
    if problems:
        raise _error(folder, problems)
    return index


def _check_single(folder: pathlib.Path) -> None:
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return
    if not folder.is_dir():
        raise WeightsError(f"{folder} is not a folder")
    names = sorted(p.name for p in folder.iterdir())
    if stray := [n for n in names if n.endswith(".safetensors")]:
        raise WeightsError(f"{folder} has {', '.join(stray)}, but neither {SINGLE} nor {INDEX}")
    if pickles := [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        raise WeightsError(
            f"{folder} has only pickle files ({', '.join(pickles)}), which can run code when they are read and are "
            f"refused: load them where you trust them and save with safetensors"
        )
    raise WeightsError(f"{folder} has neither {SINGLE} nor {INDEX}")


def _error(folder: pathlib.Path, problems: list[str]) -> WeightsError:
    return WeightsError(f"{folder} cannot be loaded:\n" + "\n".join(f"  - {p}" for p in problems))
