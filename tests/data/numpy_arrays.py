"""Writes numpy_arrays.npz: every element type that the sample reader knows, as NumPy itself stores it.

Element i of each array is 5 i - 40 (signed), 5 i (unsigned) or i % 3 == 0 (bool); all have the shape (2, 3, 4).
The names end in _c (row-major), _f (column-major) or _be (row-major, big-endian); `scalar` is 0-dimensional.
"""

from pathlib import Path

import numpy as np

index = np.arange(24).reshape(2, 3, 4)
arrays = {"scalar": np.array(7, np.int64)}
for code in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"]:
    values = index % 3 == 0 if code == "b1" else (5 * index if code[0] == "u" else 5 * index - 40)
    arrays[f"{code}_c"] = values.astype(code)
    arrays[f"{code}_f"] = np.asfortranarray(values.astype(code))
    arrays[f"{code}_be"] = values.astype(f">{code}")
np.savez_compressed(Path(__file__).with_name("numpy_arrays.npz"), **arrays)
