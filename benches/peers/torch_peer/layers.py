"""Products and losses."""

import math

import torch
import torch.nn.functional as F

from inputs import DTYPES, ids, tensor


def matmul_job(job, *_):
    batch, m, k, n, layout = (job[key] for key in ("batch", "m", "k", "n", "layout"))
    a = tensor((batch, k, m) if layout == "tn" else (batch, m, k), 1)
    b = tensor((batch, n, k) if layout == "nt" else (batch, k, n), 2)
    dtype = DTYPES[job.get("dtype", "f32")]
    a, b = a.to(dtype), b.to(dtype)
    if batch == 1:
        a, b = a[0], b[0]

    def run():
        with torch.no_grad():
            left = a.mT if layout == "tn" else a
            right = b.mT if layout == "nt" else b
            return [("product", left @ right)]

    return run


def loss_job(job, *_):
    tokens, width, vocab = job["tokens"], job["width"], job["vocab"]
    x = tensor((tokens, width), 1).requires_grad_()
    w = tensor((vocab, width), 2, 1.0 / math.sqrt(width)).requires_grad_()
    labels = ids(tokens, vocab, 3)

    def run():
        x.grad = w.grad = None
        loss = F.cross_entropy(F.linear(x, w), labels, reduction="sum")
        loss.backward()
        return [("loss", loss), ("dx", x.grad), ("dw", w.grad)]

    return run
