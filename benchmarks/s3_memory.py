"""Publish one large file to S3 and fetch it again: seconds, and how far memory grows.

    python -m benchmarks.s3_memory [--megabytes 1024] [--destination s3://bucket/prefix] [--json FILE]

Without a destination an S3 server (SeaweedFS) runs on this machine meanwhile. Upload and download each take a
process of their own; the growth is the peak of its resident memory less what was resident before. Linux only.
"""

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_MEGABYTE = 1 << 20


def measure(destination: str, folder: Path, megabytes: int) -> dict[str, Any]:
    """Publish a random file of that size and fetch it, with `folder` for the files of this machine."""
    source, target = folder / "source", folder / "target"
    draw = random.Random(0)
    with source.open("wb") as stream:
        for _ in range(megabytes):
            stream.write(draw.randbytes(_MEGABYTE))
    result: dict[str, Any] = {"megabytes": megabytes}
    for name, place in (("upload", source), ("download", target)):
        # Spawned, so that it begins without the memory of this process.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            result[name] = process.submit(_transfer, name, place, destination).result()
    return result


def _transfer(name: str, place: Path, destination: str) -> dict[str, float]:
    from automixalign.storage import publication as publish

    publish.check_writable(destination)  # so that boto3 is loaded
    Path("/proc/self/clear_refs").write_text("5")  # let the peak begin anew
    before, begin = _resident("VmRSS"), time.monotonic()
    if name == "upload":
        publish.publish({"object": place}, destination)
    else:
        publish.fetch(destination, place)
    seconds = time.monotonic() - begin
    return {"seconds": round(seconds, 2), "growth_megabytes": round(_resident("VmHWM") - before, 1)}


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--destination")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.destination is None:
            from benchmarks.servers.seaweed import seaweed

            (folder / "server").mkdir()
            os.environ.update(stack.enter_context(seaweed(folder / "server")).environment)
        result = measure(options.destination or "s3://ready/memory", folder, options.megabytes)
    table = Table(title=f"one object of {options.megabytes} MB")
    for column in ("", "seconds", "memory grows by"):
        table.add_column(column)
    for name in ("upload", "download"):
        table.add_row(name, f"{result[name]['seconds']:.1f}", f"{result[name]['growth_megabytes']:.0f} MB")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
