"""Python looks for this module when it starts: notes, fifty times a second, whether the process is importing.

Not to be imported by hand: `benchmarks/dag.py` puts its folder on the path of a run's processes. Each of them,
forks too, writes a file named by its process id into the folder that `AMA_SAMPLES` names: its command, then a
line a sample, time and 1 or 0.
"""

import os
import sys
import threading
import time

_PAUSE = 0.02


def _imports() -> bool:
    """Whether the main thread is within an import."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load":
            return True
        frame = frame.f_back
    return False


def _sample(folder: str) -> None:
    with open(os.path.join(folder, str(os.getpid())), "a", buffering=1, encoding="utf-8") as out:  # noqa: PTH118, PTH123
        out.write(" ".join(sys.orig_argv).replace("\n", " ") + "\n")
        while True:
            out.write(f"{time.time()} {int(_imports())}\n")
            time.sleep(_PAUSE)


def _begin() -> None:
    threading.Thread(target=_sample, args=(os.environ["AMA_SAMPLES"],), daemon=True).start()


if "AMA_SAMPLES" in os.environ:
    _begin()
    os.register_at_fork(after_in_child=_begin)
