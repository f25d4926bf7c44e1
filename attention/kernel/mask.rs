//! Masks as data: which keys a query may see, said about *attributes* of tokens.
//!
//! A [`MaskSpec`] names the rules, [`TokenMeta`] holds what the rules look at. Both together make
//! a [`Mask`], which every kernel evaluates in the same way: query i sees key j when their labels
//! are equal (padding, document and group in one number), the key is not later than the query,
//! and it lies in the window or is a sink. Because only attributes count, a mask stays true in a
//! cache, under left padding and after eviction.

mod blocks;
mod groups;
mod tokens;

pub use blocks::{BlockKind, BlockMap};
pub use groups::{GroupSize, Groups};
pub use tokens::TokenMeta;

use crate::Error;
use std::ops::Range;
use std::sync::Arc;

/// Label of a key that nobody sees.
const HIDDEN_KEY: i32 = -1;
/// Label of a query that sees nothing.
const BLIND_QUERY: i32 = -2;

/// The rules of a mask, without the tokens they are applied to.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskSpec {
    /// A query sees keys at its own or an earlier position only.
    pub causal: bool,
    /// A query sees the last `window` positions up to its own (1 = itself only).
    pub window: Option<usize>,
    /// The first `sinks` positions of a document stay visible outside the window.
    pub sinks: usize,
    /// Queries see keys of their own group only, half of the heads with shifted groups.
    pub groups: Option<Groups>,
}

impl MaskSpec {
    /// Causal attention over all earlier tokens of the document.
    pub fn causal() -> Self {
        Self { causal: true, window: None, sinks: 0, groups: None }
    }

    /// Every token of the document sees every other.
    pub fn bidirectional() -> Self {
        Self { causal: false, ..Self::causal() }
    }

    /// Limit the view to the last `window` positions.
    pub fn with_window(mut self, window: Option<usize>) -> Self {
        self.window = window;
        self
    }

    /// Keep the first `sinks` positions of each document visible.
    pub fn with_sinks(mut self, sinks: usize) -> Self {
        self.sinks = sinks;
        self
    }

    /// Limit the view to groups.
    pub fn with_groups(mut self, groups: Groups) -> Self {
        self.groups = Some(groups);
        self
    }
}

/// Heads that share one set of labels.
#[derive(Clone, Debug)]
pub(crate) struct HeadClass {
    /// Query heads of the class.
    pub heads: Range<usize>,
    /// `[B * T]`
    pub q_label: Vec<i32>,
    /// `[B * S]`
    pub k_label: Vec<i32>,
}

/// Rules applied to the tokens of one call; cheap to clone.
#[derive(Clone, Debug)]
pub struct Mask(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    spec: MaskSpec,
    q: TokenMeta,
    k: TokenMeta,
    heads: usize,
    classes: Vec<HeadClass>,
    sink: Vec<bool>,
}

impl Mask {
    /// Apply `spec` to queries `q` and keys `k` for `heads` query heads.
    ///
    /// # Errors
    /// When batches differ, a window is 0, sinks come without a window, or groups do not fit
    /// the lengths or the heads (see [`Groups`]).
    pub fn new(spec: MaskSpec, q: TokenMeta, k: TokenMeta, heads: usize) -> Result<Self, Error> {
        if q.batch() != k.batch() {
            return Err(Error::shape(
                "mask",
                format!("queries have {} rows, keys {}", q.batch(), k.batch()),
            ));
        }
        if heads == 0 {
            return Err(Error::mask("heads", 0, "there must be at least one"));
        }
        if spec.window == Some(0) {
            return Err(Error::mask("window", 0, "a query sees at least its own position"));
        }
        if spec.window.is_some() && !spec.causal {
            return Err(Error::mask("window", "set", "windows are defined for causal masks only"));
        }
        if spec.sinks > 0 && spec.window.is_none() {
            return Err(Error::mask("sinks", spec.sinks, "without a window every key is visible"));
        }
        let classes = match &spec.groups {
            None => vec![HeadClass {
                heads: 0..heads,
                q_label: q.labels(BLIND_QUERY),
                k_label: k.labels(HIDDEN_KEY),
            }],
            Some(groups) => groups.classes(&q, &k, heads)?,
        };
        // Positions are not negative (`TokenMeta::new`).
        let sink = k.pos().iter().map(|&p| (p as usize) < spec.sinks).collect();
        Ok(Self(Arc::new(Inner { spec, q, k, heads, classes, sink })))
    }

    /// Causal mask of `len` tokens against themselves.
    pub fn causal(batch: usize, len: usize, heads: usize) -> Self {
        let tokens = TokenMeta::contiguous(batch, len, 0);
        Self::new(MaskSpec::causal(), tokens.clone(), tokens, heads.max(1))
            .expect("a plain causal mask has no settings that could clash")
    }

    /// The rules.
    pub fn spec(&self) -> &MaskSpec {
        &self.0.spec
    }

    /// Attributes of the queries.
    pub fn queries(&self) -> &TokenMeta {
        &self.0.q
    }

    /// Attributes of the keys.
    pub fn keys(&self) -> &TokenMeta {
        &self.0.k
    }

    /// Number of query heads.
    pub fn heads(&self) -> usize {
        self.0.heads
    }

    pub(crate) fn classes(&self) -> &[HeadClass] {
        &self.0.classes
    }

    /// Index of the class that query head `head` belongs to.
    pub(crate) fn class_of(&self, head: usize) -> usize {
        let class = self.classes().iter().position(|c| c.heads.contains(&head));
        class.expect("classes cover all heads")
    }

    pub(crate) fn sink(&self) -> &[bool] {
        &self.0.sink
    }

    /// Whether query `t` of row `b` sees key `s` in query head `h`: the definition.
    pub fn visible(&self, b: usize, h: usize, t: usize, s: usize) -> bool {
        let class = &self.classes()[self.class_of(h)];
        let (i, j) = (b * self.0.q.len() + t, b * self.0.k.len() + s);
        self.rule(class.q_label[i], class.k_label[j], i, j)
    }

    fn rule(&self, q_label: i32, k_label: i32, i: usize, j: usize) -> bool {
        let (p, r) = (self.0.q.pos()[i], self.0.k.pos()[j]);
        q_label == k_label
            && (!self.0.spec.causal || r <= p)
            && self.0.spec.window.is_none_or(|w| p as usize - (r as usize) < w || self.0.sink[j])
    }

    /// The block map at this tile size: which tiles hold nothing, everything or a part.
    pub fn blocks(&self, q_tile: usize, k_tile: usize) -> BlockMap {
        BlockMap::new(self, q_tile, k_tile)
    }

    /// Query-key pairs that are visible, over all rows and heads (counted one by one: O(T·S)).
    pub fn pairs(&self) -> u64 {
        let (tq, tk) = (self.0.q.len(), self.0.k.len());
        let mut count = 0u64;
        for class in self.classes() {
            let mut of_class = 0u64;
            for b in 0..self.0.q.batch() {
                for i in b * tq..(b + 1) * tq {
                    for j in b * tk..(b + 1) * tk {
                        of_class += self.rule(class.q_label[i], class.k_label[j], i, j) as u64;
                    }
                }
            }
            count += of_class * class.heads.len() as u64;
        }
        count
    }

    /// Visible pairs over all pairs, 0 to 1.
    pub fn density(&self) -> f64 {
        let all = self.0.q.batch() * self.0.q.len() * self.0.k.len() * self.0.heads;
        if all == 0 { 0.0 } else { self.pairs() as f64 / all as f64 }
    }

    /// Multiply-add operations times two of one forward pass over the visible pairs alone.
    pub fn flops(&self, head_dim: usize, value_dim: usize) -> f64 {
        2.0 * self.pairs() as f64 * (head_dim + value_dim) as f64
    }
}
