"""Whether the peer's FlexAttention has the masks of its SDPA in a training step.

PyTorch refuses the backward pass of FlexAttention on the CPU, although what it does without a compiler
computes it: the refusal is taken out, and nothing is compiled. Weights come from the formula of the peer.
"""

import math
import sys

import torch
from torch.nn.attention import flex_attention

sys.path.insert(0, sys.argv[1])
flex_attention._validate_device = lambda *_: None
torch.compile = lambda function, **_: function

from llama import TrainStep  # noqa: E402
from masks import blocks_by_rows, rule_of  # noqa: E402

SAME = 1e-4
SIZES = {"len": 256, "batch": 2, "layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "vocab": 60}
LONGGEN = {"name": "longgen", "block": 16, "local": 2, "sinks": 1, "stride": None}
CASES = [
    ({"name": "longlora", "parts": 4}, []),
    (LONGGEN, [1]),
    ({**LONGGEN, "sinks": 0, "stride": 3}, [1]),
    ({**LONGGEN, "block": 8, "sinks": 2, "stride": 5}, [0, 2]),
]


def apart(ours, theirs):
    square = sum((a - b) ** 2 for a, b in zip(ours["values"], theirs["values"], strict=True))
    return math.sqrt(square / sum(b**2 for b in theirs["values"]))


def probes(mask, full_layers, code, strategy):
    job = {**SIZES, "mask": mask, "full_layers": full_layers, "strategy": strategy}
    return TrainStep(job, code, None).probe()


for mask, full_layers in CASES:
    for strategy in ("plain", "recompute") if mask is LONGGEN else ("plain",):
        flex, sdpa = (probes(mask, full_layers, code, strategy) for code in ("flex", "sdpa"))
        kinds = 2 if full_layers else 1
        assert [x["name"] for x in flex] == [x["name"] for x in sdpa] and len(flex) == 1 + kinds
        most = max(map(apart, flex, sdpa))
        assert most < SAME, f"{mask}, {strategy}: {most}"
    # What a card's block masks are made from.
    heads, length = (SIZES["heads"], SIZES["kv_heads"]), SIZES["len"]
    rule, differ = rule_of(mask, length, heads)
    rows = heads[0] if differ else 1
    h, i, j = (torch.arange(n) for n in (rows, length, length))
    seen = rule(0, h[:, None, None], i[:, None], j).expand(rows, length, length)
    for of_keys in (128, 64):
        tiles = seen.reshape(rows, length // 128, 128, length // of_keys, of_keys).any(4).any(2)
        found = blocks_by_rows(rule, rows, length, of_keys).to_dense()[0]
        assert torch.equal(found.bool(), tiles), (mask, of_keys)
print(f"{len(CASES)} masks")
