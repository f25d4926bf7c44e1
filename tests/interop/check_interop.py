"""Load what Longburn wrote with transformers and peft, compare logits, and write the like back.

    python check_interop.py DIR

DIR/rust/CASE/{model,adapter,expected.safetensors} come from tests/suite/interop.rs; cases of the
same form are written to DIR/python, for its second run.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TOLERANCE = 2e-5


def load(directory):
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def distance(model, expected):
    with torch.no_grad():
        logits = model(expected["ids"]).logits
    return (logits - expected["logits"]).abs().max().item()


def check(case):
    """Largest difference of each way to load the case."""
    expected = load_file(case / "expected.safetensors")
    model = load(case / "model")
    if not (case / "adapter").is_dir():
        return {"model": distance(model, expected)}
    base = load(case / "model")
    with torch.no_grad():
        without = base(expected["ids"]).logits
    if (without - expected["logits"]).abs().max() < 100 * TOLERANCE:
        raise SystemExit(f"{case.name}: the adapter changes nothing, so this shows nothing")
    model = PeftModel.from_pretrained(model, case / "adapter").eval()
    found = {"adapter": distance(model, expected)}
    found["merged"] = distance(model.merge_and_unload(), expected)
    return found


def scatter(model):
    """Move everything that trains far from where it starts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def write(case, model, adapter=None):
    shutil.rmtree(case, ignore_errors=True)
    scatter(model)
    model.eval().save_pretrained(case / "model", max_shard_size="20KB")
    if adapter is not None:
        model = get_peft_model(model, adapter)
        scatter(model)
        model.eval().save_pretrained(case / "adapter")
    ids = (torch.arange(29) * 11 % 61)[None]
    with torch.no_grad():
        logits = model(ids).logits
    save_file({"ids": ids, "logits": logits.contiguous()}, case / "expected.safetensors")


def write_all(directory):
    sizes = dict(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation="eager",
    )

    def llama(**more):
        return LlamaForCausalLM(LlamaConfig(**{**sizes, **more}))

    def qwen3():
        return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8, tie_word_embeddings=False))

    def neox(parallel):
        # A quarter of each head rotates: of 8 channels, for a whole pair.
        own = {**sizes, "hidden_size": 32, "use_parallel_residual": parallel}
        del own["num_key_value_heads"]
        return GPTNeoXForCausalLM(GPTNeoXConfig(**own))

    own = dict(vocab_size=61, hidden_size=24, num_hidden_layers=2, pad_token_id=0, eos_token_id=0)

    def mamba():
        return MambaForCausalLM(MambaConfig(**own, state_size=5, use_bias=True))

    def mamba2():
        heads = dict(num_heads=6, head_dim=8, n_groups=3, chunk_size=8)
        return Mamba2ForCausalLM(Mamba2Config(**own, **heads, state_size=5))

    # 29 ids are more than these models were trained for, so that every table is in use.
    scalings = dict(
        linear=dict(factor=4.0),
        dynamic=dict(factor=4.0),
        yarn=dict(factor=4.0, original_max_position_embeddings=16),
        longrope=dict(
            factor=4.0,
            original_max_position_embeddings=16,
            short_factor=[1.0, 1.2, 1.5],
            long_factor=[1.0, 2.0, 4.0],
        ),
        llama3=dict(
            factor=4.0,
            original_max_position_embeddings=16,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
    )

    def scaled(kind):
        length = 64 if "original_max_position_embeddings" in scalings[kind] else 16
        rope = dict(rope_type=kind, rope_theta=10000.0, **scalings[kind])
        return llama(**dict(max_position_embeddings=length, rope_parameters=rope))

    def lora(targets, saved=None, **more):
        return LoraConfig(
            r=3, lora_alpha=5, target_modules=targets, modules_to_save=saved,
            task_type="CAUSAL_LM", **more,
        )

    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    saved = ["embed_tokens", "norm", "input_layernorm", "post_attention_layernorm"]
    torch.manual_seed(0)
    write(directory / "llama", llama(tie_word_embeddings=True))
    write(directory / "gpt_neox", neox(True))
    write(directory / "gpt_neox_sequential", neox(False))
    write(directory / "mamba", mamba())
    write(directory / "mamba2", mamba2())
    for kind in scalings:
        write(directory / f"rope_{kind}", scaled(kind))
    write(directory / "lora_untied", llama(), lora(attention, saved))
    tied = dict(tie_word_embeddings=True)
    write(directory / "lora_tied", llama(**tied), lora(attention, saved, ensure_weight_tying=True))
    write(directory / "lora_tied_apart", llama(**tied), lora(attention, saved))
    write(directory / "lora_tied_head", llama(**tied), lora(["q_proj"], ["lm_head"]))
    neox_saved = ["embed_in", "final_layer_norm", "input_layernorm", "post_attention_layernorm"]
    write(directory / "lora_gpt_neox", neox(True), lora("all-linear", neox_saved))
    patterns = dict(rank_pattern={"query_key_value": 5}, alpha_pattern={"query_key_value": 7})
    write(
        directory / "lora_gpt_neox_sequential",
        neox(False),
        lora(["query_key_value", "dense"], ["lm_head"], **patterns),
    )
    write(directory / "lora_mamba", mamba(), lora(["in_proj", "x_proj"], ["norm_f"]))
    write(directory / "lora_mamba2", mamba2(), lora(["in_proj"], ["lm_head"]))
    write(directory / "lora_qwen3", qwen3(), lora("all-linear", ["norm"], use_rslora=True))


def main():
    directory = Path(sys.argv[1])
    cases = sorted(path for path in (directory / "rust").iterdir() if path.is_dir())
    if not cases:
        raise SystemExit(f"{directory}/rust holds no case")
    failed = 0
    for case in cases:
        found = check(case)
        worst = max(found.values())
        # Not `worst > TOLERANCE`, which NaN would pass.
        good = worst <= TOLERANCE
        failed += not good
        print(f"{'ok' if good else 'FAIL'} {case.name} {json.dumps(found)}")
    write_all(directory / "python")
    print(f"{len(cases) - failed} passed, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
