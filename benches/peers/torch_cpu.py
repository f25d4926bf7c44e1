"""PyTorch, on the CPU or a card, beside `longburn bench`, which starts this script and tells it, line by line,
what to do:

    {"job": {...}, "code": "sdpa", "threads": 2, "device": "cpu", "folder": null, "tiny": null}
        -> {"ready": true, "version": "torch ...", "probe": [{"name": "out", ...}, ...]}
    {"import": ["transformers"]}
        -> {"ready": true}             where Python has these
    {"run": 3}
        -> {"seconds": 0.012}          per run, over three runs

With "tiny" (the same job in small) the answer is {"peak_bytes": ...} and the script ends. By hand:

    python benches/peers/torch_cpu.py --threads 2 --repeats 5 --job '{"what": "matmul",
        "batch": 1, "m": 512, "k": 512, "n": 512, "layout": "nn"}'

prints name, version, seconds (the median) and samples, as a row of `longburn bench` has them.
Inputs come from the formula of examples/cli/bench/inputs.rs, weights from a folder in Hugging
Face form (without one, of a model of that shape: by the formula, too).
"""

import argparse
import importlib
import json
import math
import statistics
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit(1)

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


# Attention


def chosen(head, q, blocks, density):
    """Key blocks of a query block, as examples/cli/bench/inputs.rs has it."""
    count = min(max(math.ceil((q + 1) * density), 1), q + 1)
    line = (head * blocks + q) * blocks
    h = hashed(q, 6, line).tolist()
    return sorted(range(q), key=lambda k: h[k])[: count - 1] + [q]


def of_blocks(mask, length, heads, kv_heads):
    """Which blocks count, [H, blocks, blocks]."""
    blocks = -(-length // mask["block"])
    allowed = torch.zeros((heads, blocks, blocks), dtype=torch.bool)
    if mask["name"] == "stride":
        m = torch.arange(blocks)
        near = m[:, None] - m[None, :] < mask["local"]
        step = max(1, mask["stride"] // heads)
        for head in range(heads):
            phase = head // (heads // kv_heads) * step
            allowed[head] = near | ((m[None, :] + phase) % mask["stride"] == 0)
        return allowed
    for head in range(heads):
        for q in range(blocks):
            allowed[head, q, chosen(head, q, blocks, mask["density"])] = True
    return allowed


def visible(mask, length, heads):
    """Which pairs count, [T, T] or [1, H, T, T]; none where SDPA's own causal form says it."""
    if mask["name"] == "dense":
        return None
    i = torch.arange(length)
    causal = i[None, :] <= i[:, None]
    if mask["name"] == "window":
        near = i[:, None] - i[None, :] < mask["window"]
        return causal & (near | (i[None, :] < mask["sinks"]))
    if mask["name"] == "documents":
        n = i // mask["tokens"]
        return causal & (n[:, None] == n[None, :])
    if mask["name"] in ("stride", "blocks"):
        n = i // mask["block"]
        allowed = [causal & of[n][:, n] for of in of_blocks(mask, length, *heads)]
        return torch.stack(allowed)[None]
    raise ValueError(f"no boolean mask for {mask}")


def grouped(q, k, v, parts):
    """LongLoRA's shifted groups without a leak: half of the heads in whole groups, the others in
    half a group, whole groups, half a group."""
    batch, heads, length, width = q.shape
    size, half = length // parts, heads // 2

    def attend(chosen, start, stop, group):
        def cut(x):
            piece = x[:, chosen, start:stop]
            return piece.reshape(batch, -1, group, width)

        out = F.scaled_dot_product_attention(cut(q), cut(k), cut(v), is_causal=True)
        return out.reshape(batch, half, stop - start, width)

    first, second = slice(0, half), slice(half, heads)
    edge = size // 2
    shifted = [attend(second, 0, edge, edge)]
    if parts > 1:
        shifted.append(attend(second, edge, length - edge, size))
    shifted.append(attend(second, length - edge, length, edge))
    return torch.cat([attend(first, 0, length, size), torch.cat(shifted, 2)], 1)


def rule_of(mask, length, heads):
    """What FlexAttention compiles, and whether heads differ."""
    name = mask["name"]
    if name == "dense":
        return lambda b, h, i, j: j <= i, False
    if name == "window":
        window, sinks = mask["window"], mask["sinks"]
        return lambda b, h, i, j: (j <= i) & ((i - j < window) | (j < sinks)), False
    if name == "documents":
        tokens = mask["tokens"]
        return lambda b, h, i, j: (j <= i) & (i // tokens == j // tokens), False
    if name == "longlora":
        size, half = length // mask["parts"], heads[0] // 2

        def rule(b, h, i, j):
            shift = torch.where(h < half, 0, size // 2)
            return (j <= i) & ((i + shift) // size == (j + shift) // size)

        return rule, True
    allowed, block = of_blocks(mask, length, *heads), mask["block"]
    return lambda b, h, i, j: (j <= i) & allowed[h, i // block, j // block], True


def blocks_by_rows(rule, heads, length, size=128):
    """A block mask, made row by row: `create_block_mask` holds all pairs at once."""
    from torch.nn.attention.flex_attention import BlockMask

    count, h, j = length // size, torch.arange(heads)[:, None, None], torch.arange(length)[None, None]
    some, whole = [], []
    for first in range(0, length, size):
        seen = rule(0, h, torch.arange(first, first + size)[None, :, None], j)
        tiles = seen.expand(heads, size, length).reshape(heads, size, count, size)
        some.append(tiles.any(3).any(1))
        whole.append(tiles.all(3).all(1))
    some, whole = torch.stack(some, 1)[None], torch.stack(whole, 1)[None]

    def listed(x):
        order = torch.argsort(x.int(), dim=-1, descending=True, stable=True)
        return x.sum(-1, dtype=torch.int32), order.int()

    return BlockMask.from_kv_blocks(
        *listed(some & ~whole), *listed(whole), BLOCK_SIZE=size, mask_mod=rule
    )


def flex(mask, length, heads):
    """FlexAttention, compiled, with the same pairs."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device = str(torch.get_default_device())
    rule, differ = rule_of(mask, length, heads)
    rows = heads[0] if differ else None
    if device.startswith("cuda") and length % 128 == 0:
        blocks = blocks_by_rows(rule, rows or 1, length)
    else:
        blocks = create_block_mask(rule, None, rows, length, length, device=device)
    compiled = torch.compile(flex_attention)

    def run(q, k, v):
        return compiled(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])

    return run


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


# Products and losses


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


# Scans


def selective(u, delta, a, b, c):
    """All decays and inputs at once, then token after token."""
    decay = torch.exp(delta[..., None] * a)
    added = (delta * u)[..., None] * b[:, :, None]
    h, states = torch.zeros_like(added[:, 0]), []
    for of_token, new in zip(decay.unbind(1), added.unbind(1)):
        h = of_token * h + new
        states.append(h)
    return torch.einsum("tben,btn->bte", torch.stack(states), c)


def selective_in_chunks(u, delta, a, b, c, chunk=16):
    """As the kernels for cards do it: what each chunk of tokens leaves in a state of zeros, states
    from chunk to chunk by doubling, outputs. Compiled, a chunk's tokens become one kernel."""
    batch, length, width = u.shape
    chunk = min(chunk, length)
    chunks = -(-length // chunk)

    def split(x):
        return F.pad(x, (0, 0, 0, chunks * chunk - length)).view(batch, chunks, chunk, -1)

    u, delta, b, c = split(u), split(delta), split(b), split(c)

    def walk(h):
        ys = []
        for t in range(chunk):
            step = delta[:, :, t, :, None]
            h = torch.exp(step * a) * h + step * u[:, :, t, :, None] * b[:, :, t, None]
            ys.append((h * c[:, :, t, None]).sum(-1))
        return torch.stack(ys, 2), h

    decay = torch.exp(delta.sum(2)[..., None] * a)
    h = walk(torch.zeros_like(decay))[1]
    step = 1
    while step < chunks:
        h = torch.cat([h[:, :step], h[:, step:] + decay[:, step:] * h[:, :-step]], 1)
        decay = torch.cat([decay[:, :step], decay[:, step:] * decay[:, :-step]], 1)
        step *= 2
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    return walk(before)[0].reshape(batch, -1, width)[:, :length]


def in_turn(added, sums):
    """The state before each chunk, one after the other."""
    h, before = torch.zeros_like(added[0]), []
    whole = torch.exp(sums).permute(2, 0, 1)[..., None, None]
    for of_chunk, new in zip(whole.unbind(0), added.unbind(0)):
        before.append(h)
        h = of_chunk * h + new
    return torch.stack(before)


def by_product(added, sums):
    """The same as one product, as Mamba-2's authors write it: a card waits for no chunk."""
    total = F.pad(sums, (1, 0)).cumsum(-1)
    apart = total[..., :-1, None] - total[..., None, 1:]
    later = torch.ones(apart.shape[-2:], dtype=torch.bool, device=sums.device).triu()
    decay = torch.exp(apart.masked_fill(later, -torch.inf))
    return torch.einsum("bhzc,cbhpn->zbhpn", decay, added)


def duality(x, delta, a, b, c, chunk=64):
    """Matrix products over chunks, all of them at once."""
    batch, length, heads, width = x.shape
    chunk = min(chunk, length)
    chunks = length // chunk

    def split(t):
        return t.reshape(batch, chunks, chunk, *t.shape[2:])

    x, b, c = split(x * delta[..., None]), split(b), split(c)
    sums = split(delta * a).permute(0, 3, 1, 2).cumsum(-1)
    apart = sums[..., :, None] - sums[..., None, :]
    later = torch.ones(chunk, chunk, dtype=torch.bool).triu(1)
    decay = torch.exp(apart.masked_fill(later, -torch.inf))
    scores = torch.einsum("bcin,bcjn->bcij", c, b)
    within = torch.einsum("bcij,bhcij,bcjhp->bcihp", scores, decay, x)
    added = torch.einsum("bcjn,bhcj,bcjhp->cbhpn", b, decay[..., -1, :], x)
    before = (by_product if x.device.type != "cpu" else in_turn)(added, sums[..., -1])
    across = torch.einsum("bcin,cbhpn,bhci->bcihp", c, before, torch.exp(sums))
    return (within + across).reshape(batch, length, heads, width)


def scan_job(job, *_):
    batch, length, width, states = (job[key] for key in ("batch", "len", "width", "states"))
    heads = width // job["head_dim"]
    ssd = job["kind"] == "ssd"
    steps, of_a = (heads, (heads, 1)) if ssd else (width, (width, states))
    rows, narrow = (batch, length, width), (batch, length, states)
    u, delta, a = tensor(rows, 1), tensor((batch, length, steps), 2), tensor(of_a, 3, 0.5)
    b, c, d, z = tensor(narrow, 4, 0.5), tensor(narrow, 5, 0.5), tensor((steps,), 6), tensor(rows, 7)
    on_card = u.device.type != "cpu"
    scan = selective_in_chunks if on_card else selective

    def forward():
        step, decay = F.softplus(delta), -torch.exp(a)
        if not ssd:
            return (scan(u, step, decay, b, c) + d * u) * F.silu(z)
        x = u.view(batch, length, heads, -1)
        y = duality(x, step, decay[:, 0], b, c) + d[:, None] * x
        return y.reshape(rows) * F.silu(z)

    if on_card:
        forward = torch.compile(forward, dynamic=False)

    if not job["backward"]:

        def run():
            with torch.no_grad():
                return [("y", forward())]

        return run
    dy = tensor(rows, 8)
    leaves = {"du": u, "ddelta": delta, "db": b, "dc": c, "dz": z, "da": a}
    for leaf in [*leaves.values(), d]:
        leaf.requires_grad_()

    def both():
        for leaf in [*leaves.values(), d]:
            leaf.grad = None
        y = forward()
        y.backward(dy)
        return [("y", y), *((name, leaf.grad) for name, leaf in leaves.items())]

    return both


# Models


def fastest_in_model(job, dtype):
    """Lets SDPA use its fastest backend for causal attention of a layer, and that one alone; its name."""
    width = job["width"] // job["heads"]
    shapes = [(job["batch"], job[heads], job["len"], width) for heads in ("heads", "kv_heads", "kv_heads")]
    leaves = [tensor(shape, salt).to(dtype).requires_grad_() for salt, shape in enumerate(shapes)]
    _, name = best_of_card(*leaves, True)
    torch.backends.cuda.enable_cudnn_sdp(name.startswith("cudnn"))
    torch.backends.cuda.enable_flash_sdp(name.startswith("flash"))
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)
    return name


class Llama:
    """A decoder out of the functions that PyTorch has for it; weights by Hugging Face's names.

    In 16 bits the weights stay f32 and are rounded where they are used, the residual stream is in 16
    bits, and norms and rotations compute in f32. On a card a block is compiled, once for all layers.
    """

    OF_A_BLOCK = (
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )

    def __init__(self, job, code, folder):
        self.heads, self.kv = job["heads"], job["kv_heads"]
        self.layers, self.width = job["layers"], job["width"]
        self.head = self.width // self.heads
        self.dtype = DTYPES[job.get("dtype", "f32")]
        self.again = job.get("strategy") == "recompute"
        self.weights = {
            name: w.requires_grad_() for name, w in weights(job, folder).items()
        }
        on_card = str(torch.get_default_device()).startswith("cuda")
        self.version = f"torch {torch.__version__}"
        self.repeat = False
        if on_card and self.dtype != torch.float32 and job["mask"]["name"] == "dense":
            name = fastest_in_model(job, self.dtype)
            self.version += f", {name}"
            self.repeat = "repeated" in name
        self.attend = attention(job["mask"], job["len"], (self.heads, self.kv), code)
        frequencies = 10000.0 ** -(torch.arange(0, self.head, 2, dtype=torch.float64) / self.head)
        angles = torch.arange(job["len"], dtype=torch.float64)[:, None] * frequencies
        angles = torch.cat([angles, angles], 1)
        self.cos, self.sin = angles.cos().float(), angles.sin().float()
        self.of_block = torch.compile(self.plain_block, dynamic=False) if on_card else self.plain_block
        self.of_chunk = torch.compile(loss_of_chunk, dynamic=False) if on_card else loss_of_chunk

    def norm(self, x, weight):
        return F.rms_norm(x.float(), (self.width,), weight, 1e-5).to(x.dtype)

    def linear(self, x, weight):
        return F.linear(x, weight.to(x.dtype))

    def rotate(self, x):
        left, right = x.float().chunk(2, -1)
        turned = torch.cat([-right, left], -1)
        return (x.float() * self.cos + turned * self.sin).to(x.dtype)

    def plain_block(self, x, before, q, k, v, o, between, gate, up, down):
        batch, length, _ = x.shape

        def split(weight, heads):
            y = self.linear(normed, weight)
            return y.view(batch, length, heads, self.head).transpose(1, 2)

        normed = self.norm(x, before)
        q, k, v = split(q, self.heads), split(k, self.kv), split(v, self.kv)
        q, k = self.rotate(q), self.rotate(k)
        if self.repeat:
            k, v = (y.repeat_interleave(self.heads // self.kv, 1) for y in (k, v))
        mixed = self.attend(q, k, v)
        mixed = mixed.transpose(1, 2).reshape(batch, length, self.width)
        x = x + self.linear(mixed, o)
        normed = self.norm(x, between)
        gated = F.silu(self.linear(normed, gate).float()) * self.linear(normed, up)
        return x + self.linear(gated.to(x.dtype), down)

    def block(self, x, layer):
        at = f"model.layers.{layer}."
        of_layer = [self.weights[f"{at}{name}.weight"] for name in self.OF_A_BLOCK]
        if not self.again:
            return self.of_block(x, *of_layer)
        from torch.utils.checkpoint import checkpoint

        return checkpoint(self.of_block, x, *of_layer, use_reentrant=False)

    def loss(self, rows):
        x = F.embedding(rows, self.weights["model.embed_tokens.weight"]).to(self.dtype)
        for layer in range(self.layers):
            x = self.block(x, layer)
        x = self.norm(x, self.weights["model.norm.weight"])
        head = self.weights["lm_head.weight"]
        if self.dtype == torch.float32:
            logits = F.linear(x, head)
            vocab = logits.shape[-1]
            return F.cross_entropy(logits[:, :-1].reshape(-1, vocab), rows[:, 1:].reshape(-1))
        # The last token of a row has no label.
        labels = F.pad(rows[:, 1:], (0, 1), value=-100).reshape(-1)
        count = rows.shape[0] * (rows.shape[1] - 1)
        return LinearLoss.apply(x.reshape(-1, self.width), head, labels, self.of_chunk) / count


def loss_of_chunk(x, head, labels):
    """Sum of the losses of some tokens, and its gradients; the head is rounded already."""
    logits = F.linear(x, head).float()
    counted = (labels >= 0).float()[:, None]
    log_p = torch.log_softmax(logits, -1)
    at = labels.clamp(min=0)[:, None]
    loss = -(log_p.gather(1, at) * counted).sum()
    words = torch.arange(logits.shape[-1], device=labels.device)
    of_logits = ((log_p.exp() - (words == at).float()) * counted).to(x.dtype)
    return loss, of_logits @ head, (of_logits.T @ x).float()


class LinearLoss(torch.autograd.Function):
    """A linear layer and its cross-entropy by chunks of tokens, without all logits at once: gradients
    are computed with the loss, as fused losses have it."""

    @staticmethod
    def forward(ctx, x, head, labels, of_chunk):
        rounded, size = head.to(x.dtype), max(16, min(1 << 14, (1 << 26) // head.shape[0]))
        loss, of_x, of_head = 0.0, torch.empty_like(x), torch.zeros_like(head)
        for start in range(0, x.shape[0], size):
            part = slice(start, start + size)
            of_part, of_x[part], more = of_chunk(x[part], rounded, labels[part])
            loss = loss + of_part
            of_head += more
        ctx.save_for_backward(of_x, of_head)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        of_x, of_head = ctx.saved_tensors
        return (of_x.float() * upstream).to(of_x.dtype), of_head * upstream, None, None


def weights(job, folder):
    if folder:
        from safetensors.torch import load_file

        return load_file(f"{folder}/model.safetensors", str(torch.get_default_device()))
    width, vocab = job["width"], job["vocab"]
    inner = job.get("inner") or -(-(width * 8 // 3) // 8) * 8
    of_keys = width // job["heads"] * job["kv_heads"]
    shapes = {"model.embed_tokens": (vocab, width), "lm_head": (vocab, width)}
    named = {"model.norm.weight": torch.ones(width)}
    for layer in range(job["layers"]):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            named[f"{at}{name}.weight"] = torch.ones(width)
        for name, shape in {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (of_keys, width),
            "self_attn.v_proj": (of_keys, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }.items():
            shapes[at + name] = shape
    for salt, (name, shape) in enumerate(sorted(shapes.items())):
        named[name + ".weight"] = tensor(shape, salt, 0.5 / math.sqrt(shape[1]))
    return named


def block_job(job, code, folder):
    model = Llama(job, code, folder)
    shape = (job["batch"], job["len"], job["width"])
    x, dout = tensor(shape, 1).requires_grad_(), tensor(shape, 2)
    at = "model.layers.0."
    used = [w for name, w in model.weights.items() if name.startswith(at)]

    def run():
        for leaf in [x, *used]:
            leaf.grad = None
        y = model.block(x.to(model.dtype), 0).float()
        y.backward(dout)
        gate = model.weights[at + "mlp.gate_proj.weight"].grad
        return [("out", y), ("dx", x.grad), ("dgate", gate)]

    run.version = model.version
    return run


class TrainStep:
    def __init__(self, job, code, folder):
        self.model = Llama(job, code, folder)
        self.version = self.model.version
        self.rows = ids(job["batch"] * job["len"], job["vocab"], 5).view(job["batch"], -1)
        self.optimizer = torch.optim.AdamW(
            self.model.weights.values(),
            lr=1e-3,
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=0.0,
            fused=True,
            capturable=self.rows.device.type == "cuda",
        )
        self.graph, self.result = None, None

    def __call__(self):
        if self.graph is None:
            return self.step()
        self.graph.replay()
        return self.result

    def capture(self):
        """The whole step as one graph, so that no kernel waits for Python."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self.step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.result = self.step()
        self.graph = graph
        self.version += ", as one graph"

    def step(self):
        loss = self.model.loss(self.rows)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return [("losses", loss)]

    def probe(self):
        losses = [self()[0][1].item() for _ in range(3)]
        if self.rows.device.type == "cuda":
            self.capture()
        return probe([("losses", torch.tensor(losses))])


class Generate:
    def __init__(self, job, *_):
        import transformers

        transformers.logging.set_verbosity_error()
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            job["folder"], dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.prompt = ids(job["prompt"], self.model.config.vocab_size, 5)[None]
        self.new = job["new"]

    def __call__(self):
        with torch.no_grad():
            self.model.generate(
                self.prompt,
                attention_mask=torch.ones_like(self.prompt),
                max_new_tokens=self.new,
                min_new_tokens=self.new,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )

    def probe(self):
        with torch.no_grad():
            return probe([("logits", self.model(self.prompt).logits[0, -1])])


JOBS = {
    "attention": attention_job,
    "matmul": matmul_job,
    "linear-loss": loss_job,
    "scan": scan_job,
    "block": block_job,
    "train-step": TrainStep,
    "generate": Generate,
}


def resident(field):
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field):
                return int(line.split()[1]) << 10
    return None


def most(run):
    """Most memory of a run beyond what there was; none where the system does not say."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        reset = True
    except OSError:
        reset = False
    try:
        before, peak = resident("VmRSS"), resident("VmHWM")
        run()
        after = resident("VmHWM")
    except OSError:
        return None
    return max(after - before, 0) if reset or after > peak else None


def prepare(order):
    job = order["job"]
    if job["what"] not in JOBS:
        raise ValueError(f"no such job: {job['what']}")
    return JOBS[job["what"]](job, order.get("code", "sdpa"), order.get("folder"))


def timed(run, times):
    start = time.perf_counter()
    for _ in range(times):
        run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def first(order):
    torch.set_num_threads(order["threads"])
    torch.set_default_device(order.get("device") or "cpu")
    if order.get("tiny"):
        prepare({**order, "job": order["tiny"]})()
        run = prepare(order)
        if order["job"]["what"] == "train-step":
            run()  # makes the moments
        return {"peak_bytes": most(run)}, None
    run = prepare(order)
    found = run.probe() if hasattr(run, "probe") else probe(run())
    version = getattr(run, "version", f"torch {torch.__version__}")
    return {"ready": True, "version": version, "probe": found}, run


def serve():
    run = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "run" in order:
                answer = {"seconds": timed(run, order["run"])}
            elif "import" in order:
                for name in order["import"]:
                    importlib.import_module(name)
                answer = {"ready": True}
            else:
                answer, run = first(order)
        except Exception as error:  # whoever asked has to hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def by_hand():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--job", required=True, type=json.loads)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--code", default="sdpa", choices=["sdpa", "flex"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder")
    args = parser.parse_args()
    ready, run = first(vars(args))
    timed(run, 1)
    samples = [timed(run, 1) for _ in range(args.repeats)]
    peer = {"name": "torch", "version": ready["version"], "seconds": statistics.median(samples)}
    print(json.dumps({**peer, "samples": samples}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        by_hand()
    else:
        serve()
