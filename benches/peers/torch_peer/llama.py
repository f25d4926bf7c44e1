"""A Llama in PyTorch, and its training step."""

import math

import torch
import torch.nn.functional as F

from attention import AUTOTUNED, attention, fastest_flex, fastest_in_model
from inputs import DTYPES, ids, probe, tensor


class Llama:
    """A decoder out of the functions that PyTorch has for it; weights by Hugging Face's names.

    In 16 bits the weights stay f32 and are rounded where they are used, the residual stream is in 16
    bits, and norms and rotations compute in f32. On a card a block is compiled, once for all layers with
    the same mask. Full layers of a model whose others have a mask (LongGen) are SDPA's, whatever
    computes the others: FlexAttention is for masks that SDPA does not know.
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
        dense, on_card = {"name": "dense"}, str(torch.get_default_device()).startswith("cuda")
        self.version = f"torch {torch.__version__}"
        full = [layer in job.get("full_layers", []) for layer in range(self.layers)]
        kinds = {f: (dense, "sdpa") if f else (job["mask"], code) for f in set(full)}
        by_sdpa = [mask for mask, by in kinds.values() if by == "sdpa"]
        repeated = False
        # Where SDPA has masks, too, PyTorch chooses among its backends: the fastest know none.
        if on_card and self.dtype != torch.float32 and by_sdpa and all(m == dense for m in by_sdpa):
            name = fastest_in_model(job, self.dtype)
            self.version += f", {name}"
            repeated = "repeated" in name
        frequencies = 10000.0 ** -(torch.arange(0, self.head, 2, dtype=torch.float64) / self.head)
        angles = torch.arange(job["len"], dtype=torch.float64)[:, None] * frequencies
        angles = torch.cat([angles, angles], 1)
        self.cos, self.sin = angles.cos().float(), angles.sin().float()
        blocks = {}
        for kind, (mask, by) in kinds.items():
            options = None
            if on_card and by == "flex":
                attend, name = fastest_flex(job, self.dtype)
                self.version += f", {name}"
                options = AUTOTUNED
            else:
                attend = attention(mask, job["len"], (self.heads, self.kv), by)
            block = self.block_with(attend, repeated and by == "sdpa")
            blocks[kind] = torch.compile(block, dynamic=False, options=options) if on_card else block
        self.blocks = [blocks[kind] for kind in full]
        self.of_chunk = torch.compile(loss_of_chunk, dynamic=False) if on_card else loss_of_chunk

    def norm(self, x, weight):
        return F.rms_norm(x.float(), (self.width,), weight, 1e-5).to(x.dtype)

    def linear(self, x, weight):
        return F.linear(x, weight.to(x.dtype))

    def rotate(self, x):
        left, right = x.float().chunk(2, -1)
        turned = torch.cat([-right, left], -1)
        return (x.float() * self.cos + turned * self.sin).to(x.dtype)

    def block_with(self, attend, repeated):
        """A block as a function of its input and weights; key heads are repeated, or shared."""

        def block(x, *of_layer):
            return self.plain_block(attend, repeated, x, *of_layer)

        return block

    def plain_block(self, attend, repeated, x, before, q, k, v, o, between, gate, up, down):
        batch, length, _ = x.shape

        def split(weight, heads):
            y = self.linear(normed, weight)
            return y.view(batch, length, heads, self.head).transpose(1, 2)

        normed = self.norm(x, before)
        q, k, v = split(q, self.heads), split(k, self.kv), split(v, self.kv)
        q, k = self.rotate(q), self.rotate(k)
        if repeated:
            k, v = (y.repeat_interleave(self.heads // self.kv, 1) for y in (k, v))
        mixed = attend(q, k, v)
        mixed = mixed.transpose(1, 2).reshape(batch, length, self.width)
        x = x + self.linear(mixed, o)
        normed = self.norm(x, between)
        gated = F.silu(self.linear(normed, gate).float()) * self.linear(normed, up)
        return x + self.linear(gated.to(x.dtype), down)

    def block(self, x, layer):
        at = f"model.layers.{layer}."
        of_layer = [self.weights[f"{at}{name}.weight"] for name in self.OF_A_BLOCK]
        if not self.again:
            return self.blocks[layer](x, *of_layer)
        from torch.utils.checkpoint import checkpoint

        # Nothing is drawn, so that no state of a generator needs to come back.
        again = {"use_reentrant": False, "preserve_rng_state": False}
        return checkpoint(self.blocks[layer], x, *of_layer, **again)

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
        self.graph, self.result, self.grads = None, None, None
        kinds = self.model.blocks
        self.watched = sorted(kinds.index(block) for block in set(kinds))

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
        if self.grads is None:
            self.grads = probe(self.watched_grads())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return [("losses", loss)]

    def watched_grads(self):
        """Of the values' weights, in a layer of each kind: losses at the start hardly depend on masks."""
        for layer in self.watched:
            weight = self.model.weights[f"model.layers.{layer}.self_attn.v_proj.weight"]
            yield f"dv of layer {layer}", weight.grad

    def probe(self):
        losses = [self()[0][1].item() for _ in range(3)]
        if self.rows.device.type == "cuda":
            self.capture()
        return probe([("losses", torch.tensor(losses))]) + self.grads
