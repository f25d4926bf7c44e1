//! What the gate is measured against: equally many blocks, chosen without it.

use crate::recipe::Recipe;
use burn::module::Module;
use burn::tensor::Tensor;
use longburn::Result;
use longburn::attention::seer::{BlockLayout, Select, Teacher, choose_blocks};
use longburn::attention::{AttnProjections, MixContext, MixOutput, SequenceMixer, State};
use longburn::kernel::{AttentionOptions, Branch, Mask, masked_attention};
use longburn::streams::{Draw, Purpose, Streams};

/// Which blocks a row of blocks sees. All rules see equally many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The nearest.
    Window,
    /// The first one and the nearest.
    Sink,
    /// Its own and others at random, for every layer, head and row anew.
    Random,
    /// Those with the largest attention weights, which only dense attention knows.
    Oracle,
}

impl Rule {
    pub const ALL: [Self; 4] = [Self::Window, Self::Sink, Self::Random, Self::Oracle];

    pub fn title(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Sink => "window and first block",
            Self::Random => "random",
            Self::Oracle => "largest weights (oracle)",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Sink => "sink",
            Self::Random => "random",
            Self::Oracle => "oracle",
        }
    }
}

/// Attention to the blocks of a rule.
#[derive(Module, Debug)]
pub struct Ruled {
    proj: AttnProjections,
    #[module(skip)]
    rule: Rule,
    #[module(skip)]
    block: usize,
    #[module(skip)]
    select: Select,
}

impl Ruled {
    pub fn new(proj: AttnProjections, rule: Rule, recipe: &Recipe, sparsity: f64) -> Self {
        Self { proj, rule, block: recipe.gate.block, select: Select::NzRatio(1.0 - sparsity) }
    }
}

impl SequenceMixer for Ruled {
    fn forward(
        &self,
        x: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        ctx.refuse_state(state.as_ref(), "a rule with a cache", "evaluate whole rows")?;
        let ([batch, t, _], heads) = (x.dims(), self.proj.heads());
        let new = self.proj.project(x, ctx)?;
        let layout = BlockLayout::of(ctx.tokens, self.block)?;
        let mask = Mask::new(
            longburn::kernel::MaskSpec::causal(),
            ctx.tokens.clone(),
            ctx.tokens.clone(),
            heads,
        )?;
        let branch = Branch { q: new.q, k: new.k, mask };
        let options = AttentionOptions::default();
        let n = layout.blocks();
        let kept = self.select.kept(n, self.block).unwrap_or(n);
        let targets = match self.rule {
            Rule::Oracle => {
                let one = std::slice::from_ref(&branch);
                let lse = masked_attention(one, new.v.clone(), &options)?.lse;
                let (branch, options) = (branch.clone(), options.clone());
                let teacher = Teacher { branch, lse, layout: &layout, options };
                teacher.block_targets(0..n)?.into_data().iter::<f32>().collect()
            }
            _ => Vec::new(),
        };
        let list = choose_blocks(&layout, [batch, heads, t, t], |b, h, i| {
            let seen = i + 1;
            let far = seen.saturating_sub(kept);
            Ok(match self.rule {
                Rule::Window => (0..seen).map(|j| j >= far).collect(),
                Rule::Sink if kept > 1 => (0..seen).map(|j| j > far || j == 0).collect(),
                Rule::Sink => (0..seen).map(|j| j >= far).collect(),
                Rule::Random => {
                    let place = (b * heads + h) * n + i;
                    let layer = ctx.layer as u32;
                    let mut rng =
                        Streams::new(0x5EE2).rng(Purpose::Sampling, place as u64, 0, layer);
                    let mut others: Vec<usize> = (0..i).collect();
                    rng.shuffle(&mut others);
                    let mut chosen = vec![false; seen];
                    chosen[i] = true;
                    others.iter().take(kept - 1).for_each(|j| chosen[*j] = true);
                    chosen
                }
                Rule::Oracle => {
                    let row = ((b * heads + h) * n + i) * n;
                    self.select.choose(&targets[row..row + seen], n, self.block)?
                }
            })
        })?;
        let branch = Branch { mask: branch.mask.clone().with_blocks(list)?, ..branch };
        let out = masked_attention(&[branch], new.v, &options)?.out;
        Ok(MixOutput::new(self.proj.output(out)))
    }
}
