"""Inputs by the formula of examples/cli/bench/inputs.rs, what of results is compared, and how time is taken."""

import math
import time

import torch

PROBED, PLACES = 512, 9
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def hashed(count, salt, start=0):
    index = (torch.arange(count, dtype=torch.int64) + start) & 0xFFFFFFFF
    h = (index * 2654435761 + salt * 2246822519) & 0xFFFFFFFF
    for _ in range(2):
        h ^= h >> 16
        h = (h * 0x045D9F3B) & 0xFFFFFFFF
    return h ^ (h >> 16)


def tensor(shape, salt, scale=1.0):
    count = math.prod(shape)
    h = hashed(count, salt)
    unit = (h >> 8).to(torch.float32) / (1 << 23) - 1.0
    return (unit * 1.7320508 * scale).reshape(shape)


def ids(count, limit, salt):
    return hashed(count, salt) % limit


def places(count):
    """Which elements of a flat result are compared, as examples/cli/bench/probe.rs has it."""
    if count <= PROBED:
        return list(range(count))
    return [h * count >> 32 for h in hashed(PROBED, PLACES).tolist()]


def probe(named):
    found = []
    for name, x in named:
        flat = x.detach().reshape(-1)
        values = flat[torch.tensor(places(flat.numel()))].float().tolist()
        sums = [each.sum(dtype=torch.float64).item() for each in (flat, flat.abs())]
        found.append({"name": name, "values": values, "sum": sums[0], "size": sums[1]})
    return found


def timed(run, times):
    start = time.perf_counter()
    for _ in range(times):
        run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times
