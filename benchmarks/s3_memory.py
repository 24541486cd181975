"""Measures publishing one large file to S3 and fetching it: seconds, and the growth of memory.

    python -m benchmarks.s3_memory [--megabytes 1024] [--destination s3://bucket/prefix] [--json FILE]

Without a destination, the benchmark starts an S3 server (SeaweedFS) on this machine. Upload and download each
run in a new process. Its growth is the peak of its resident memory minus what was resident before. Linux
only.
"""

import multiprocessing
import os
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import harness

_MEGABYTE = 1 << 20


def measure(destination: str, folder: Path, megabytes: int) -> dict[str, Any]:
    """Publish a random file of this size and fetch it; `folder` holds the local files."""
    source, target = folder / "source", folder / "target"
    draw = random.Random(0)
    with source.open("wb") as stream:
        for _ in range(megabytes):
            stream.write(draw.randbytes(_MEGABYTE))
    result: dict[str, Any] = {"megabytes": megabytes}
    for name, place in (("upload", source), ("download", target)):
        # A spawned process starts without the memory of this one.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            result[name] = process.submit(_transfer, name, place, destination).result()
    return result


def _transfer(name: str, place: Path, destination: str) -> dict[str, float]:
    from automixalign.storage import publication as publish

    publish.check_writable(destination)  # loads boto3
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
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
    """Measure, print the table, and write it as JSON."""
    parser = harness.parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--destination")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.destination is None:
            from benchmarks.servers.seaweed import seaweed

            (folder / "server").mkdir()
            os.environ.update(stack.enter_context(seaweed(folder / "server")).environment)
        result = measure(options.destination or "s3://ready/memory", folder, options.megabytes)
    rows = [
        [name, f"{result[name]['seconds']:.1f}", f"{result[name]['growth_megabytes']:.0f} MB"]
        for name in ("upload", "download")
    ]
    harness.show(f"one object of {options.megabytes} MB", ["", "seconds", "memory grows by"], rows)
    harness.write(options, result)


if __name__ == "__main__":
    main()
