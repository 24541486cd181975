"""The kernels that compute attention, and whether gradients are finite at every length."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from automixalign.models.load import autocast
from automixalign.scoring.logps.batch import PairBatch, PairIds
from automixalign.scoring.logps.forward import prepare_head, side_logps
from benchmarks.gpu_check.forward import Batches, attending, ids_of
from benchmarks.gpu_check.setting import Row, Setting, for_each_way, free_memory

_SHOWN = 4
_ATTENTION = ("attention", "attn", "flash", "fmha", "sdp", "flex")
"""Parts of the names of attention kernels."""


def kernels(setting: Setting) -> Iterator[Row]:
    """The attention kernels of a forward and backward pass, with their shares of its time."""
    rows = setting.rows(1, setting.pairs)
    yield from for_each_way(lambda way: _kernels(setting, rows, way))


def _kernels(setting: Setting, rows: list[dict[str, Any]], way: str) -> Iterator[Row]:
    model = setting.model()
    on_cuda = torch.cuda.is_available()
    with attending(model, way) as batches:
        call = partial(_backward, model, ids_of(rows), batches)
        call()  # compiles
        activities = [ProfilerActivity.CUDA] if on_cuda else [ProfilerActivity.CPU]
        with profile(activities=activities) as profiler:
            call()
            if on_cuda:
                torch.cuda.synchronize()
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        times[event.key] += event.self_device_time_total if on_cuda else event.self_cpu_time_total
    if not (whole := times.total()):
        raise RuntimeError("the profiler saw no kernels; perhaps it does not work with this driver")
    named = {name: time for name, time in times.items() if any(part in name.lower() for part in _ATTENTION)}
    yield Row(f"{way}: all attention", sum(named.values()) / whole, "of the time")
    for name, time in Counter(named).most_common(_SHOWN):
        yield Row(f"{way}: {name:.110}", time / whole, "of the time")


def nan_sweep(setting: Setting) -> Iterator[Row]:
    """Forward and backward passes at many lengths: gradients that are not finite, and distance from eager."""
    yield from for_each_way(lambda way: _sweep(setting, way))


def _sweep(setting: Setting, way: str) -> Iterator[Row]:
    shape = {"num_hidden_layers": setting.layers, "vocab_size": 1024}
    model, plain = setting.model(**shape), setting.model(**shape)
    plain.set_attn_implementation("eager")
    prepare_head(plain)
    draw = torch.Generator().manual_seed(0)
    bad, apart, done = [], 0.0, 0
    for length in setting.lengths:
        if setting.time_is_up():
            break
        pairs = [_pair(length, share, draw) for share in (2, 3)]
        with attending(model, way) as batches:
            logps = _backward(model, pairs, batches)
        gradients = [each.grad for each in model.parameters()]
        if not all(bool(torch.isfinite(each).all()) for each in (logps, *gradients)):
            bad.append(length)
        with torch.no_grad(), autocast("auto"):
            batch = PairBatch.padded(pairs).to(model.device)
            exact = side_logps(plain, batch)
        # A wrong kernel is off by whole nats a token; rounding is not.
        sizes = torch.tensor(batch.sizes, device=exact.device).view(-1, 2)
        apart = max(apart, float(((logps - exact) / sizes).abs().max()))
        model.zero_grad()
        done += 1
    note = f"not finite at {bad}" if bad else ""
    yield Row(f"{way}: lengths with NaN", len(bad), f"of {done}", note)
    yield Row(f"{way}: lengths not tried for time", len(setting.lengths) - done)
    yield Row(f"{way}: differs from eager", apart, "nats a token")
    del model, plain
    free_memory()


def _pair(length: int, share: int, draw: torch.Generator) -> PairIds:
    """A pair of random tokens: `length` on the longer side; the other answer is half as long."""

    def ids(count: int) -> list[int]:
        return torch.randint(3, 1024, (count,), generator=draw).tolist()  # type: ignore[no-any-return]

    prompt = length // share
    return PairIds(ids(prompt), ids(length - prompt), ids((length - prompt) // 2))


def _backward(model: Any, pairs: list[PairIds], batches: Batches) -> torch.Tensor:
    """A forward pass of the pairs in bf16 and the backward pass of its sum; returns the log-probabilities."""
    batch = batches(pairs)
    with autocast("auto"):
        logps = side_logps(model, batch)
    logps.sum().backward()
    return logps.detach()
