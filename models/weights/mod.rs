//! safetensors files, single and sharded, read with suspicion and written with care.
