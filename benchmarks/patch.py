"""Show what a patch could save by carrying differences between originals and protected files, and how long patch and restore take.

A difference is the original compressed with the protected file before it, so that whatever both have in common costs nothing
(LZMA), or the bytes of one exclusive-or those of the other, compressed. Example, with a result of ``salm-cli protect``::

    python benchmarks/patch.py result ../shared/data/pbc_folder --images 100
"""

from __future__ import annotations

import argparse
import lzma
import os
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from salm_lightning.partners.keys import public_of
from salm_lightning.partners.patch import restore, write_patch
from salm_lightning.release.folder_manifest import COPIED, PROTECTED, read_records


def differences(before: bytes, after: bytes) -> tuple[int, ...]:
    """Return the bytes of an original, of it compressed by zlib and by LZMA, and of the two differences."""
    both = min(len(before), len(after))
    mixed = (np.frombuffer(before[:both], np.uint8) ^ np.frombuffer(after[:both], np.uint8)).tobytes() + before[both:]
    packed = len(lzma.compress(before))
    behind = len(lzma.compress(after + before)) - len(lzma.compress(after))
    return len(before), len(zlib.compress(before, 9)), packed, len(lzma.compress(mixed)), behind


def main() -> None:
    """Print the sizes by format, and the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--images", type=int, default=100)
    options = parser.parse_args()
    rng, noisy = np.random.default_rng(0), [record for record in read_records(options.result) if record.format != COPIED]
    chosen = [noisy[number] for number in rng.permutation(len(noisy))[: options.images]]
    print(f"{'format':8}{'files':>7}{'bytes':>12}{'zlib':>8}{'LZMA':>8}{'xor':>8}{'difference':>12}")
    for name in sorted({record.format for record in chosen}):
        paths = [record.file for record in chosen if record.format == name]
        found = [
            differences((options.source / path).read_bytes(), (options.result / PROTECTED / path).read_bytes()) for path in paths
        ]
        total, *others = np.sum(found, axis=0)
        shares = [f"{size / total:.1%}" for size in others]
        print(f"{name:8}{len(paths):7}{total:12}{shares[0]:>8}{shares[1]:>8}{shares[2]:>8}{shares[3]:>12}")
    with tempfile.TemporaryDirectory() as folder:
        key, patch = os.urandom(32), Path(folder, "patch.c4gh")
        begin = time.perf_counter()
        made = write_patch(options.result, options.source, patch, key, [public_of(key)])
        between = time.perf_counter()
        restore(options.result, patch, key, Path(folder, "originals"))
        print(
            f"patch of {made.files} files: {patch.stat().st_size} bytes for {made.size}, written in {between - begin:.1f} s, "
            f"restored in {time.perf_counter() - between:.1f} s"
        )


if __name__ == "__main__":
    main()
