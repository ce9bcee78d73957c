"""Arrays on disk that are read and written piece by piece, because all of them together would not fit into memory."""

import mmap
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np


def open_array(path: Path) -> np.ndarray:
    """Memory-mapped; an empty array cannot be mapped, and costs nothing to read."""
    return np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)


def let_go(*arrays: np.ndarray) -> None:
    """What was read of mapped arrays stays in the page cache, and is no longer memory of this process."""
    for array in arrays:
        if isinstance(array, np.memmap) and array._mmap is not None:  # type: ignore[attr-defined]
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


class GrowingArrays:
    """One .npy a name, appended to; their lengths are known, and written, at the end. To be used in a `with`."""

    def __init__(self, folder: Path, types: dict[str, type[np.generic]]) -> None:
        self._folder, self._types, self._open = folder, types, ExitStack()
        self._streams: dict[str, BinaryIO] = {}
        self.rows = dict.fromkeys(types, 0)

    def append(self, name: str, values: np.ndarray) -> None:
        """`values` are brought to the type of the array."""
        self.rows[name] += len(values)
        self._streams[name].write(np.ascontiguousarray(values, dtype=self._types[name]).data)

    def __enter__(self) -> "GrowingArrays":
        for name in self._types:
            self._streams[name] = self._open.enter_context(open(self._folder / f"{name}.npy", "wb"))
        self._write_headers()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open:
            if kind is None:
                self._write_headers()

    def _write_headers(self) -> None:
        """numpy leaves room in them for a larger length, so that they can be written again."""
        for name, stream in self._streams.items():
            stream.seek(0)
            described = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(self._types[name])),
                "fortran_order": False,
                "shape": (self.rows[name],),
            }
            np.lib.format.write_array_header_1_0(stream, described)
