"""Calibration on a cluster: each worker runs its share of the samples, and the tables merge to that of one machine.

    python tests/builds/dask_calibrate.py MODEL CALIB OUT [--shares 4] [--scheduler ADDRESS]

Without a scheduler a cluster of this machine's processors does the work. Workers need the `qonnx` command, the model and
the samples under the same paths, as on a shared file system. Needs dask[distributed].
"""

import argparse
import os
import subprocess
import tempfile

from dask.distributed import Client, LocalCluster

QONNX = os.environ.get("QONNX", "qonnx")


def share(model: str, calib: str, which: str) -> bytes:
    """The table of one share, on whatever machine this runs."""
    with tempfile.TemporaryDirectory() as scratch:
        part = os.path.join(scratch, "part.json")
        words = [QONNX, "calibrate", model, "--calib", calib, "--shard", which, "-o", part, "-q", "--threads", "1"]
        subprocess.run(words, check=True)
        with open(part, "rb") as file:
            return file.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calib")
    parser.add_argument("out")
    parser.add_argument("--shares", type=int, default=4)
    parser.add_argument("--scheduler")
    args = parser.parse_args()
    cluster = args.scheduler or LocalCluster(dashboard_address=None, threads_per_worker=1)
    with Client(cluster) as client, tempfile.TemporaryDirectory() as scratch:
        shares = [f"{i + 1}/{args.shares}" for i in range(args.shares)]
        model, calib = os.path.abspath(args.model), os.path.abspath(args.calib)
        tables = client.gather([client.submit(share, model, calib, which) for which in shares])
        parts = [os.path.join(scratch, f"{i}.json") for i in range(len(tables))]
        for part, table in zip(parts, tables):
            with open(part, "wb") as file:
                file.write(table)
        subprocess.run([QONNX, "merge", *parts, "-o", args.out], check=True)


if __name__ == "__main__":
    main()
