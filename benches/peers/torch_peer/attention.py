"""Attention by PyTorch: the fastest SDPA of a card, or FlexAttention."""

import torch
import torch.nn.functional as F

from inputs import DTYPES, tensor, timed
from masks import flex, grouped, visible

# FlexAttention tries kernels of several shapes; products are the libraries', as without it.
AUTOTUNED = {"max_autotune": True, "max_autotune_gemm_backends": "ATEN"}


def best_of_card(q, k, v, backward):
    """SDPA's fastest backend on a card for causal attention, and its name. Those that do not know
    shared key heads get them repeated."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    repeat, found = q.shape[1] // k.shape[1], []

    def form(backend, repeated):
        def run(q, k, v):
            if repeated and repeat > 1:
                k, v = (x.repeat_interleave(repeat, 1) for x in (k, v))
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, enable_gqa=repeat > 1 and not repeated
                )

        return run

    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        for repeated in (False, True) if repeat > 1 else (False,):
            run = form(backend, repeated)

            def once():
                out = run(q, k, v)
                if backward:
                    out.backward(torch.ones_like(out))

            try:
                once()
                found.append((timed(once, 3), backend.name, repeated, run))
            except RuntimeError:
                continue
    for leaf in (q, k, v):
        leaf.grad = None
    _, name, repeated, run = min(found, key=lambda x: x[0])
    return run, name.lower() + (", keys repeated" if repeated else "")


def attention(mask, length, heads, code="sdpa"):
    """A function of q, k, v, as a user of PyTorch would write it; heads of queries and of keys."""
    if code == "flex":
        return flex(mask, length, heads)
    if mask["name"] == "longlora":

        def run(q, k, v):
            repeat = q.shape[1] // k.shape[1]
            if repeat > 1:
                k, v = (x.repeat_interleave(repeat, 1) for x in (k, v))
            return grouped(q, k, v, mask["parts"])

        return run
    allowed = visible(mask, length, heads)

    def run(q, k, v):
        gqa = q.shape[1] != k.shape[1]
        if allowed is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=gqa)

    return run


def attention_job(job, code, _):
    of_queries = (job["batch"], job["heads"], job["len"], job["head_dim"])
    of_keys = (job["batch"], job["kv_heads"], job["len"], job["head_dim"])
    dtype = DTYPES[job.get("dtype", "f32")]
    q, k, v = (tensor(*x).to(dtype) for x in ((of_queries, 1), (of_keys, 2), (of_keys, 3)))
    version = f"torch {torch.__version__}"
    if job["backward"]:
        for leaf in (q, k, v):
            leaf.requires_grad_()
    if q.device.type != "cpu" and code == "sdpa" and job["mask"]["name"] == "dense":
        run, name = best_of_card(q, k, v, job["backward"])
        version += f", {name}"
    else:
        run = attention(job["mask"], job["len"], (job["heads"], job["kv_heads"]), code)
    if not job["backward"]:

        def forward():
            with torch.no_grad():
                return [("out", run(q, k, v))]

        forward.version = version
        return forward
    dout = tensor(of_queries, 4).to(dtype)

    def both():
        for leaf in (q, k, v):
            leaf.grad = None
        out = run(q, k, v)
        out.backward(dout)
        return [("out", out), ("dv", v.grad), ("dq", q.grad), ("dk", k.grad)]

    both.version = version
    return both


def leaves_of_layer(job, dtype):
    width = job["width"] // job["heads"]
    shapes = [(job["batch"], job[heads], job["len"], width) for heads in ("heads", "kv_heads", "kv_heads")]
    return [tensor(shape, salt).to(dtype).requires_grad_() for salt, shape in enumerate(shapes)]


def fastest_flex(job, dtype):
    """FlexAttention for a layer, and its tiles: PyTorch's own, or ones as narrow as the blocks of keys that
    a stride leaves out, if they are faster forward and backward."""
    mask, heads = job["mask"], (job["heads"], job["kv_heads"])
    block = mask["block"] if mask.get("stride") else 128
    sizes = [128] if block >= 128 or 128 % block or block % 16 else [128, block]
    runs = {size: flex(mask, job["len"], heads, size, AUTOTUNED) for size in sizes}
    if len(sizes) == 1:
        return runs[128], "FlexAttention"
    times = {}
    for size, run in runs.items():
        leaves = leaves_of_layer(job, dtype)

        def once():
            out = run(*leaves)
            out.backward(torch.ones_like(out))

        try:
            once()
            times[size] = timed(once, 3)
        except RuntimeError:  # not all tiles fit all kernels
            continue
    size = min(times, key=times.get)
    return runs[size], f"FlexAttention by {size} keys"


def fastest_in_model(job, dtype):
    """Lets SDPA use its fastest backend for causal attention of a layer, and that one alone; its name."""
    _, name = best_of_card(*leaves_of_layer(job, dtype), True)
    torch.backends.cuda.enable_cudnn_sdp(name.startswith("cudnn"))
    torch.backends.cuda.enable_flash_sdp(name.startswith("flash"))
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)
    return name
