//! `longburn mask`

use crate::output::Target;
use crate::{Globals, output};
use clap::{Args, Subcommand};
use longburn::attention::LongLoraConfig;
use longburn::kernel::{BlockStride, Mask, MaskSpec, TokenMeta};
use longburn::models::ModelConfig;
use longburn::models::hub::Need;
use longburn::models::weights::write_atomic;
use longburn::training::Recipe;
use longburn::training::report::{MaskDrawing, MaskSummary, Progress};
use longburn::{Error, Result};
use std::path::PathBuf;

/// Longest sequence whose mask is looked at.
const MOST: usize = 1 << 20;

/// Most heads, and widest, that are counted.
const MOST_HEADS: usize = 1 << 16;

/// Most key heads that are drawn one by one.
const MOST_PANELS: usize = 64;

/// Look at attention masks
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  longburn mask show recipe.toml --out mask.svg")]
pub enum MaskVerb {
    Show(ShowArgs),
}

/// Draw a mask and count what it lets through
///
/// The mask is that which a recipe trains with, or one put together from the options here.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn mask show recipe.toml --out mask.svg
  longburn mask show --len 64 --group-ratio 4 --heads 4 --out mask.svg
  longburn mask show --len 64 --stride 4 --block 4 --local-blocks 2 --heads 4 --out stride.svg")]
pub struct ShowArgs {
    /// A recipe; its mixer, length, heads and window are taken
    recipe: Option<PathBuf>,
    /// Tokens; a recipe's length where not given
    #[arg(long, value_name = "N", required_unless_present = "recipe")]
    len: Option<usize>,
    /// SVG file to write
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Layer of the recipe's model, which may have a window of its own
    #[arg(long, default_value_t = 0, value_name = "N", requires = "recipe")]
    layer: usize,
    #[command(flatten)]
    spec: Spec,
}

#[derive(Args)]
struct Spec {
    /// A query sees so many tokens up to itself
    #[arg(long, value_name = "N", conflicts_with = "recipe")]
    window: Option<usize>,
    /// So many first tokens stay visible outside of the window
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "recipe")]
    sinks: usize,
    /// Queries see later keys, too
    #[arg(long, conflicts_with = "recipe")]
    bidirectional: bool,
    /// Groups of one part in so many of the length (LongLoRA)
    #[arg(long, value_name = "N", group = "groups", conflicts_with = "recipe")]
    group_ratio: Option<usize>,
    /// Groups of so many tokens
    #[arg(long, value_name = "N", group = "groups", conflicts_with = "recipe")]
    group_size: Option<usize>,
    /// Do not shift the groups of half of the heads
    #[arg(long, requires = "groups", conflicts_with = "recipe")]
    no_shift: bool,
    /// Accept a length that is no multiple of the group
    #[arg(long, requires = "groups", conflicts_with = "recipe")]
    ragged: bool,
    /// One in so many of the blocks before the nearest, with a phase per key head (LongGen)
    #[arg(long, value_name = "N", conflicts_with = "recipe")]
    stride: Option<usize>,
    /// Tokens per block of the stride
    #[arg(long, value_name = "N", default_value_t = 64, requires = "stride")]
    block: usize,
    /// Nearest blocks that are seen beside the stride, the query's own included
    #[arg(long, value_name = "N", default_value_t = 8, requires = "stride")]
    local_blocks: usize,
    /// Key heads of the stride; as many as query heads where not given
    #[arg(long, value_name = "N", requires = "stride")]
    kv_heads: Option<usize>,
    /// Lengths of documents packed into the row, instead of one document
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    segments: Vec<usize>,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 2, conflicts_with = "recipe")]
    heads: usize,
    /// Width of a head, for counting operations
    #[arg(long, value_name = "N", default_value_t = 64, conflicts_with = "recipe")]
    head_dim: usize,
}

impl MaskVerb {
    pub fn targets(&self) -> Vec<Target<'_>> {
        let Self::Show(args) = self;
        Target::file("out", &args.out).into_iter().collect()
    }

    pub fn run(&self, globals: &Globals) -> Result<()> {
        let Self::Show(args) = self;
        let Shown { title, spec, heads, head_dim, len } = args.shown()?;
        if len == 0 || len > MOST {
            let expected = format!("from 1 to {MOST}");
            return Err(Error::config("command line", "len", len, expected));
        }
        let segments = &args.spec.segments;
        let tokens = match segments.is_empty() {
            true => TokenMeta::contiguous(1, len, 0),
            false => TokenMeta::packed(std::slice::from_ref(segments), len)?,
        };
        let mask = Mask::new(spec, tokens.clone(), tokens, heads)?;
        let drawing = MaskDrawing::new(&mask, head_dim);
        if let Some(out) = &args.out {
            write_atomic(out, drawing.svg(&title).as_bytes())?;
        }
        match globals.json {
            true => output::json(&output::value(&drawing.summary)),
            false => output::print(&format!("{title}\n{}", text(&drawing.summary))),
        }
    }
}

/// What is drawn.
struct Shown {
    title: String,
    spec: MaskSpec,
    heads: usize,
    head_dim: usize,
    len: usize,
}

impl ShowArgs {
    fn shown(&self) -> Result<Shown> {
        match &self.recipe {
            Some(path) => {
                let recipe = Recipe::from_file(path)?;
                self.of_recipe(&recipe.located(Need::Description, &Progress::new(0))?)
            }
            None => self.of_flags(),
        }
    }

    fn of_recipe(&self, recipe: &Recipe) -> Result<Shown> {
        let config: ModelConfig = recipe.model_config()?;
        let layers = config.num_hidden_layers;
        let Some(window) = config.windows.get(self.layer) else {
            let expected = format!("below the model's {layers} layers");
            return Err(Error::config("command line", "layer", self.layer, expected));
        };
        let len = self.len.unwrap_or(recipe.train.length);
        let mixer = &recipe.mixers(&config)?[self.layer];
        Ok(Shown {
            title: format!("{}, layer {}, {len} tokens", mixer.name(), self.layer),
            spec: mixer.mask(*window)?,
            heads: config.num_attention_heads,
            head_dim: config.head_dim,
            len,
        })
    }

    fn of_flags(&self) -> Result<Shown> {
        let flags = &self.spec;
        for (field, value) in [("heads", flags.heads), ("head-dim", flags.head_dim)] {
            if value == 0 || value > MOST_HEADS {
                let expected = format!("from 1 to {MOST_HEADS}");
                return Err(Error::config("command line", field, value, expected));
            }
        }
        let base = if flags.bidirectional { MaskSpec::bidirectional() } else { MaskSpec::causal() };
        let mut spec = base.with_window(flags.window).with_sinks(flags.sinks);
        let len = self.len.unwrap_or_default();
        let groups = LongLoraConfig::new().with_shift(!flags.no_shift).with_ragged(flags.ragged);
        let groups = match (flags.group_size, flags.group_ratio) {
            (Some(size), _) => Some(groups.with_group_size(size)),
            (None, Some(ratio)) => Some(groups.with_group_ratio(ratio)),
            (None, None) => None,
        };
        if let Some(groups) = groups {
            spec = spec.with_groups(groups.groups());
        }
        if let Some(stride) = flags.stride {
            let key_heads = flags.kv_heads.unwrap_or(flags.heads);
            if key_heads > MOST_PANELS {
                let expected = format!("up to {MOST_PANELS}, each has a panel of its own");
                return Err(Error::config("command line", "kv-heads", key_heads, expected));
            }
            let near = flags.local_blocks;
            spec = spec.with_stride(BlockStride::new(flags.block, near, stride, key_heads));
        }
        let title = format!("{len} tokens");
        Ok(Shown { title, spec, heads: flags.heads, head_dim: flags.head_dim, len })
    }
}

fn text(summary: &MaskSummary) -> String {
    format!(
        "{} pairs visible, {:.2} % of all\n{:.3e} operations per layer and pass, {:.2} of the \
         unmasked {:.3e}\n{} of {} tiles of {} x {} are computed\n",
        summary.pairs,
        100.0 * summary.density,
        summary.operations,
        summary.operations / summary.dense_operations,
        summary.dense_operations,
        summary.visited_tiles,
        summary.total_tiles,
        summary.tile,
        summary.tile
    )
}
