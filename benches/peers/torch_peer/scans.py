"""Scans of state-space layers in PyTorch."""

import torch
import torch.nn.functional as F

from inputs import tensor


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
