"""Rules of attention: as masks, as groups that are computed apart, and for FlexAttention."""

import math

import torch
import torch.nn.functional as F

from inputs import hashed


def chosen(head, q, blocks, density):
    """Key blocks of a query block, as examples/cli/bench/inputs.rs has it."""
    count = min(max(math.ceil((q + 1) * density), 1), q + 1)
    line = (head * blocks + q) * blocks
    h = hashed(q, 6, line).tolist()
    return sorted(range(q), key=lambda k: h[k])[: count - 1] + [q]


def of_blocks(mask, length, heads):
    """Which blocks count, [H, blocks, blocks]."""
    blocks = -(-length // mask["block"])
    allowed = torch.zeros((heads, blocks, blocks), dtype=torch.bool)
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
    if mask["name"] in ("stride", "longgen", "blocks"):
        rule, differ = rule_of(mask, length, heads)
        h = torch.arange(heads[0] if differ else 1)[:, None, None]
        return rule(0, h, i[:, None], i[None, :])[None]
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


def rule_by_blocks(mask, heads):
    """Near blocks, the first ones, and one in so many, with a phase per key head."""
    block, local, sinks, stride = mask["block"], mask["local"], mask.get("sinks", 0), mask["stride"]
    group = heads[0] // heads[1]
    step = max(1, stride // heads[0]) if stride else 0

    def rule(b, h, i, j):
        m, n = i // block, j // block
        seen = (m - n < local) | (n < sinks)
        if stride:
            seen = seen | ((n + h // group * step) % stride == 0)
        return (j <= i) & seen

    return rule, bool(stride)


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
    if name in ("stride", "longgen"):
        return rule_by_blocks(mask, heads)
    allowed, block = of_blocks(mask, length, heads[0]), mask["block"]
    return lambda b, h, i, j: (j <= i) & allowed[h, i // block, j // block], True


def blocks_by_rows(rule, heads, length, of_keys=128):
    """A block mask, made row by row: `create_block_mask` holds all pairs at once."""
    from torch.nn.attention.flex_attention import BlockMask

    size, count = 128, length // of_keys
    h, j = torch.arange(heads)[:, None, None], torch.arange(length)[None, None]
    some, whole = [], []
    for first in range(0, length, size):
        seen = rule(0, h, torch.arange(first, first + size)[None, :, None], j)
        tiles = seen.expand(heads, size, length).reshape(heads, size, count, of_keys)
        some.append(tiles.any(3).any(1))
        whole.append(tiles.all(3).all(1))
    some, whole = torch.stack(some, 1)[None], torch.stack(whole, 1)[None]

    def listed(x):
        order = torch.argsort(x.int(), dim=-1, descending=True, stable=True)
        return x.sum(-1, dtype=torch.int32), order.int()

    return BlockMask.from_kv_blocks(
        *listed(some & ~whole), *listed(whole), BLOCK_SIZE=(size, of_keys), mask_mod=rule
    )


def flex(mask, length, heads, of_keys=128, options=None):
    """FlexAttention, compiled, with the same pairs: on cards by tiles of 128 queries and `of_keys` keys."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device = str(torch.get_default_device())
    rule, differ = rule_of(mask, length, heads)
    rows = heads[0] if differ else None
    if device.startswith("cuda") and length % 128 == 0:
        blocks = blocks_by_rows(rule, rows or 1, length, of_keys)
    else:
        blocks = create_block_mask(rule, None, rows, length, length, device=device)
    compiled = torch.compile(flex_attention, options=options)

    def run(q, k, v):
        return compiled(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])

    return run
