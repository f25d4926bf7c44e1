//! Text to token sequences: sources, tokenizer, packing, synthetic tasks.
