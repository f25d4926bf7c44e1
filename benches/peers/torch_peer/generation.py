"""Generation by transformers."""

import torch

from inputs import ids, probe


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
