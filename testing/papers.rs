//! The papers of the zoo and what there is of each: the data behind `docs/papers.md`, the table
//! in the README and `longburn papers`.

use serde::Serialize;

/// How far a paper is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Listed, nothing written.
    Planned,
    /// In the library, tested, with an example.
    Implemented,
}

/// One paper, or one technique that the papers build on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Paper {
    /// Short name: the stem of its source file and, for a mixer, its name in recipes.
    pub name: &'static str,
    /// Title of the publication.
    pub title: &'static str,
    /// Identifier on arXiv.
    pub arxiv: &'static str,
    /// Folder of the layer that owns it.
    pub layer: &'static str,
    /// What it does, in one line.
    pub idea: &'static str,
    /// How far it is.
    pub status: Status,
    /// Source file, from the root of the repository.
    pub source: Option<&'static str>,
    /// Folder of its example, from the root of the repository.
    pub example: Option<&'static str>,
}

const fn planned(
    name: &'static str,
    arxiv: &'static str,
    layer: &'static str,
    title: &'static str,
    idea: &'static str,
) -> Paper {
    let status = Status::Planned;
    Paper { name, title, arxiv, layer, idea, status, source: None, example: None }
}

impl Status {
    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Implemented => "implemented",
        }
    }
}

impl Paper {
    const fn implemented(self, source: &'static str, example: Option<&'static str>) -> Self {
        Self { status: Status::Implemented, source: Some(source), example, ..self }
    }
}

/// Every paper that the zoo is made of, by layer.
pub fn papers() -> &'static [Paper] {
    PAPERS
}

/// What the papers stand on: techniques that are here to be extended and compared with. Few have an
/// example of their own; those own what a paper does.
pub fn foundations() -> &'static [Paper] {
    FOUNDATIONS
}

/// The text of `docs/papers.md`.
pub fn papers_page() -> String {
    let done = count(PAPERS, Status::Implemented);
    let mut page = String::from("# Papers\n\n");
    page += "This page is generated from `testing/papers.rs` and compared by `cargo test`;\n";
    page += "`LONGBURN_BLESS=1 cargo test --test registry` rewrites it.\n\n";
    page += &format!("Implemented: {done} of {} papers. ", PAPERS.len());
    page += "\"Planned\" means that nothing of it is here yet.\n";
    let mut layer = "";
    for paper in PAPERS {
        if paper.layer != layer {
            layer = paper.layer;
            page += &format!("\n## {layer}/\n\n{HEADER}");
        }
        page += &row(paper);
    }
    page += "\n## Foundations\n\nWhat the papers build on and are compared with.\n\n";
    page += HEADER;
    FOUNDATIONS.iter().for_each(|paper| page += &row(paper));
    page
}

/// The table of the README: what is implemented, and how much is planned.
pub fn readme_table() -> String {
    let mut table = String::from(HEADER);
    let all = || PAPERS.iter().chain(FOUNDATIONS);
    all().filter(|p| p.status == Status::Implemented).for_each(|p| table += &row(p));
    let planned = count(PAPERS, Status::Planned);
    table + &format!("\n{planned} more are planned: [docs/papers.md](docs/papers.md).\n")
}

const HEADER: &str =
    "| Paper | What it does | Status | Source | Example |\n|---|---|---|---|---|\n";

fn count(list: &[Paper], status: Status) -> usize {
    list.iter().filter(|p| p.status == status).count()
}

fn row(paper: &Paper) -> String {
    // Links are from the root; `docs/papers.md` is rendered beside the sources on every host, so
    // paths are shown as code and only arXiv is linked.
    let path = |p: Option<&str>| p.map(|p| format!("`{p}`")).unwrap_or_default();
    format!(
        "| [{}](https://arxiv.org/abs/{}) | {} | {} | {} | {} |\n",
        paper.title,
        paper.arxiv,
        paper.idea,
        paper.status.name(),
        path(paper.source),
        path(paper.example),
    )
}

#[rustfmt::skip]
const PAPERS: &[Paper] = &[
    planned("pe_impact", "2305.19466", "positional", "The Impact of Positional Encoding on Length Generalization in Transformers", "Absolute, T5, ALiBi, partial rotary and no positions in one decoder, from L to 2L"),
    planned("llama2_long", "2309.16039", "positional", "Effective Long-Context Scaling of Foundation Models", "A larger RoPE base and continued pre-training on long text"),
    planned("clex", "2310.16450", "positional", "CLEX: Continuous Length Extrapolation for Large Language Models", "RoPE frequencies as the solution of a small learned ODE over the length factor"),
    planned("entropy_abf", "2401.07004", "positional", "Extending LLMs' Context Window with 100 Samples", "A larger base and a query scale that grows with the position"),
    planned("e2_llm", "2401.06951", "positional", "E2-LLM: Efficient and Extreme Length Extension of Large Language Models", "Random stretch and offset of positions at a short training length"),
    planned("v2pe", "2412.09616", "positional", "V2PE: Improving Multimodal Long-Context Capability of Vision-Language Models with Variable Visual Position Encoding", "Visual tokens advance the position by a fraction"),
    planned("dpe", "2504.18857", "positional", "Effective Length Extrapolation via Dimension-Wise Positional Embeddings Manipulation", "Far distances grouped per set of rotary dimensions"),

    planned("longlora", "2309.12307", "attention", "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models", "Grouped attention, half of the heads shifted, in training; dense in inference; LoRA with embedding and norms").implemented("attention/longlora.rs", Some("examples/longlora")),
    planned("lococo", "2406.05317", "attention", "LoCoCo: Dropping In Convolutions for Long Context Compression", "Keys and values fused into a fixed number of slots by learned weights"),
    planned("longgen", "2410.01485", "attention", "A Little Goes a Long Way: Efficient Long Context Training and Inference with Partial Contexts", "Full attention in the middle third of the layers, sparse attention outside").implemented("attention/longgen.rs", Some("examples/longgen")),
    planned("seer", "2410.13276", "attention", "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs", "A learned gate picks the blocks of keys that a block of queries sees").implemented("attention/seer/mod.rs", Some("examples/seer")),
    planned("stuffed_mamba", "2410.07145", "attention", "Stuffed Mamba: Oversized States Lead to the Inability to Forget", "State collapse in recurrent models: measured and mitigated"),
    planned("tokenselect", "2411.02886", "attention", "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic Token-Level KV Cache Selection", "Heads vote for the cached tokens that a query sees"),
    planned("anchor", "2411.13476", "attention", "When Precision Meets Position: BFloat16 Breaks Down RoPE in Long-Context Training", "Packed documents share one first token at position 0").implemented("attention/anchor.rs", Some("examples/anchor")),
    planned("qwen25_1m", "2501.15383", "attention", "Qwen2.5-1M Technical Report", "Dual chunk attention, sparse prefill and a recipe up to a million tokens"),
    planned("longmamba", "2504.16053", "attention", "LongMamba: Enhancing Mamba's Long Context Capabilities via Training-Free Receptive Field Enlargement", "Unimportant tokens leave the state of slowly forgetting heads alone"),
    planned("lact", "2505.23884", "attention", "Test-Time Training Done Right", "Fast weights updated once per large chunk, beside window attention").implemented("attention/lact/mod.rs", Some("examples/lact")),
    planned("deltallm", "2507.19608", "attention", "DeltaLLM: A Training-Free Framework Exploiting Temporal Sparsity for Efficient Edge LLM Inference", "Small changes between neighbouring keys are skipped outside a local window"),
    planned("lawcat", "2509.18467", "attention", "LAWCAT: Efficient Distillation from Quadratic to Linear Attention with Convolution across Tokens for Long Context Modeling", "Softmax attention distilled into gated linear attention with short convolutions"),

    planned("xl3m", "2405.17755", "models", "XL3M: A Training-free Framework for LLM Length Extension Based on Segment-wise Inference", "The segments that make the model surest are spliced into a short context"),
    planned("dragonfly", "2406.00977", "models", "Dragonfly: Multi-Resolution Zoom-In Encoding Enhances Vision-Language Models", "Crops at three resolutions, pooled or selected"),
    planned("longwriter", "2408.07055", "models", "LongWriter: Unleashing 10,000+ Word Generation from Long Context LLMs", "Plan, then write paragraph by paragraph; tuned on such outputs"),
    planned("etbench", "2409.18111", "models", "E.T. Bench: Towards Open-Ended Event-Level Video-Language Understanding", "Time stamps as a match between a token and frame states"),
    planned("long_context_rag", "2410.05983", "models", "Long-Context LLMs Meet RAG: Overcoming Challenges for Long Inputs in RAG", "The best passages go to both ends of the context"),
    planned("quamba", "2410.13229", "models", "Quamba: A Post-Training Quantization Recipe for Selective State Space Models", "Eight-bit weights and activations for selective scans"),
    planned("inftythink", "2503.06692", "models", "InftyThink: Breaking the Length Limits of Long-Context Reasoning in Large Language Models", "Reason in segments, each continued from a summary"),
    planned("videopainter", "2503.05639", "models", "VideoPainter: Any-length Video Inpainting and Editing with Plug-and-Play Context Control", "A small side encoder and keys carried from window to window"),
    planned("precedent_guardrails", "2507.20503", "models", "Customize Multi-modal RAI Guardrails with Precedent-based Predictions", "Retrieved precedents instead of long policies in the prompt"),
    planned("keye_vl", "2509.01563", "models", "Kwai Keye-VL 1.5 Technical Report", "Fast and slow video frames under a token budget"),
    planned("test_time_scaling_3d", "2511.15738", "models", "Extending Test-Time Scaling: A 3D Perspective with Context, Batch, and Turn", "Longer thoughts, parallel samples and refinement turns together"),

    planned("cat_lm", "2310.01602", "datasets", "CAT-LM: Training Language Models on Aligned Code And Tests", "Code files and their tests as one document"),
    planned("dataset_decomposition", "2405.13226", "datasets", "Dataset Decomposition: Faster LLM Training with Variable Sequence Length Curriculum", "Buckets of power-of-two lengths, one document per sequence"),
    planned("utk", "2409.04774", "datasets", "Untie the Knots: An Efficient Data Augmentation Strategy for Long-Context Pre-Training in Language Models", "Documents cut and shuffled, to be found again over long distances"),
    planned("prolong", "2410.02660", "datasets", "How to Train Long-Context Language Models (Effectively)", "A mixture of long and short data, then longer still"),
    planned("metadata_pcfg", "2504.17562", "datasets", "When Does Metadata Conditioning (NOT) Work for Language Model Pre-Training? A Study with Context-Free Grammars", "Synthetic text with known latent structure"),
    planned("webexplorer", "2509.06501", "datasets", "WebExplorer: Explore and Evolve for Training Long-Horizon Web Agents", "Questions grown by exploring pages and then made harder"),

    planned("repofusion", "2306.10998", "training", "RepoFusion: Training Code Models to Understand Your Repository", "Many repository contexts, encoded apart, read by one decoder"),
    planned("lightseq", "2310.03294", "training", "DISTFLASHATTN: Distributed Memory-efficient Attention for Long-context LLMs Training", "Causal attention over several devices, balanced"),
    planned("chimed", "2311.06025", "training", "ChiMed-GPT: A Chinese Medical Large Language Model with Full Training Regime and Better Alignment to Human Preferences", "Pre-training, instruction tuning, reward model and rejection sampling in one regime"),
    planned("temp_lora", "2401.11504", "training", "With Greater Text Comes Greater Necessity: Inference-Time Training Helps Long Text Generation", "A throw-away LoRA learns each chunk that was written"),
    planned("scaling_laws", "2403.06563", "training", "Unraveling the Mystery of Scaling Laws: Part I", "Loss curves predicted from small runs"),
    planned("memo", "2407.12117", "training", "MEMO: Fine-grained Tensor Management For Ultra-long Context LLM Training", "Activations swapped or recomputed token by token"),
    planned("flexsp", "2412.01523", "training", "FlexSP: Accelerating Large Language Model Training via Flexible Sequence Parallelism", "Groups of devices sized to the sequences of each step"),
    planned("execrepobench", "2412.11990", "training", "ExecRepoBench: Multi-level Executable Code Completion Evaluation", "Completions judged by running the repository's tests"),
    planned("bytescale", "2502.21231", "training", "ByteScale: Efficient Scaling of LLM Training with a 2048K Context Length on More Than 12,000 GPUs", "Data and context parallelism chosen per sequence"),
    planned("ptp", "2505.09561", "training", "Learning Long-Context Diffusion Policies via Past-Token Prediction", "Policies that also predict their own past actions"),
    planned("seco", "2505.16710", "training", "Training Long-Context LLMs Efficiently via Chunk-wise Optimization", "One chunk's activations in memory at a time, exactly or sampled"),
    planned("campo", "2507.14683", "training", "MiroMind-M1: An Open-Source Advancement in Mathematical Reasoning via Context-Aware Multi-Stage Policy Optimization", "Policy optimisation in stages of length, with a penalty on repetition"),
    planned("spell", "2509.23863", "training", "SPELL: Self-Play Reinforcement Learning for Evolving Long-Context Language Models", "One model asks, answers and verifies over long documents"),
    planned("supo", "2510.06727", "training", "Scaling LLM Multi-turn RL with End-to-end Summarization-based Context Management", "Rollouts split by summaries that the policy writes itself"),
    planned("deepminer", "2510.08276", "training", "Beyond Turn Limits: Training Deep Search Agents with Dynamic Context Window", "A sliding window over tool outputs, and training that matches it"),
    planned("distca", "2510.18121", "training", "Efficient Long-context Language Model Training by Core Attention Disaggregation", "Attention as tasks that are moved to balance the devices"),
    planned("mirothinker", "2511.11793", "training", "MiroThinker: Pushing the Performance Boundaries of Open-Source Research Agents via Model, Context, and Interactive Scaling", "Hundreds of tool calls with only the last results kept"),

    planned("survey_llms", "2403.14469", "testing", "ChatGPT Alternative Solutions: Large Language Models Survey", "A table of models, as data"),
    planned("survey_long_context", "2502.17129", "testing", "Thus Spake Long-Context Large Language Model", "A map of techniques and what each plugs into, as data"),
];

#[rustfmt::skip]
const FOUNDATIONS: &[Paper] = &[
    planned("dense", "1706.03762", "attention", "Attention Is All You Need", "Causal softmax attention over all earlier tokens").implemented("attention/dense.rs", None),
    planned("gqa", "2305.13245", "attention", "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", "Several query heads share a key head").implemented("attention/dense.rs", None),
    planned("window", "2310.06825", "attention", "Mistral 7B", "A sliding window of keys").implemented("attention/dense.rs", None),
    planned("rope", "2104.09864", "positional", "RoFormer: Enhanced Transformer with Rotary Position Embedding", "Queries and keys rotated by their positions").implemented("positional/rope.rs", None),
    planned("rope_linear", "2306.15595", "positional", "Extending Context Window of Large Language Models via Positional Interpolation", "Positions divided by the stretch").implemented("positional/rope.rs", None),
    planned("rope_llama3", "2407.21783", "positional", "The Llama 3 Herd of Models", "Long wavelengths stretched, short ones kept").implemented("positional/rope.rs", None),
    planned("rope_yarn", "2309.00071", "positional", "YaRN: Efficient Context Window Extension of Large Language Models", "Slow pairs stretched, fast ones kept, sharper attention").implemented("positional/frequencies.rs", None),
    planned("rope_longrope", "2402.13753", "positional", "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", "A divisor per pair, found by search").implemented("positional/frequencies.rs", None),
    planned("gpt_neox", "2204.06745", "models", "GPT-NeoX-20B: An Open-Source Autoregressive Language Model", "Feed-forward layer beside attention, rotation of a part of each head").implemented("models/decoder.rs", None),
    planned("lora", "2106.09685", "models", "LoRA: Low-Rank Adaptation of Large Language Models", "Trained low-rank updates beside frozen weights").implemented("models/lora.rs", None),
    planned("mamba1", "2312.00752", "attention", "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", "A selective state space per channel").implemented("attention/mamba1.rs", Some("examples/mamba1")),
    planned("mamba2", "2405.21060", "attention", "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality", "A scalar decay per head, computed in chunks").implemented("attention/mamba2.rs", Some("examples/mamba2")),
];
