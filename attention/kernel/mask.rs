//! Masks as data: which keys a query may see, said about *attributes* of tokens.
//!
//! A [`MaskSpec`] names the rules, [`TokenMeta`] holds what the rules look at. Both together make
//! a [`Mask`], which every kernel evaluates in the same way: query i sees key j when their labels
//! are equal (padding, document and group in one number) or j is the row's anchor, the key is not
//! later than the query, and it lies in the window or is a sink, or in a block that is near or kept
//! by the head. Because only attributes count, a mask stays true in a cache, under left padding and
//! after eviction.

mod blocks;
mod groups;
mod joined;
#[cfg(feature = "cuda-nvrtc")]
mod kept;
mod lines;
mod lists;
mod recent;
mod stride;
#[cfg(test)]
mod tests;
mod tokens;

pub use blocks::{BlockKind, BlockMap};
pub use groups::{GroupSize, Groups};
pub use lists::BlockList;
pub use stride::BlockStride;
pub(crate) use stride::Strided;
pub use tokens::TokenMeta;

use crate::Error;
use blocks::Tiles;
use recent::Recent;
use std::ops::Range;
use std::sync::Arc;

/// Label of a key that nobody sees.
pub(crate) const HIDDEN_KEY: i32 = -1;
/// Label of a query that sees nothing.
pub(crate) const BLIND_QUERY: i32 = -2;

/// The rules of a mask, without the tokens they are applied to.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskSpec {
    /// A query sees keys at its own or an earlier position only.
    pub causal: bool,
    /// A query sees the last `window` positions up to its own (1 = itself only).
    pub window: Option<usize>,
    /// The first `sinks` positions of a document stay visible outside the window, or outside the
    /// blocks of a stride.
    pub sinks: usize,
    /// Keys of the segment [`TokenMeta::ANCHOR`] are seen from every document of their row. Without,
    /// tokens that have one are refused.
    pub anchor: bool,
    /// Queries see keys of their own group only, half of the heads with shifted groups.
    pub groups: Option<Groups>,
    /// Queries see the nearest blocks, and one in so many of those before them.
    pub stride: Option<BlockStride>,
}

impl MaskSpec {
    /// Causal attention over all earlier tokens of the document.
    pub fn causal() -> Self {
        let anchor = false;
        Self { causal: true, window: None, sinks: 0, anchor, groups: None, stride: None }
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

    /// Choose whether all documents of a row see its anchor.
    pub fn with_anchor(mut self, anchor: bool) -> Self {
        self.anchor = anchor;
        self
    }

    /// Limit the view to groups.
    pub fn with_groups(mut self, groups: Groups) -> Self {
        self.groups = Some(groups);
        self
    }

    /// Limit the view to near blocks and strided ones.
    pub fn with_stride(mut self, stride: BlockStride) -> Self {
        self.stride = Some(stride);
        self
    }
}

/// Padding, document and group of every token as one number, for some of the heads.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    /// Query heads that they hold for.
    pub heads: Range<usize>,
    /// `[B * T]`
    pub q: Vec<i32>,
    /// `[B * S]`
    pub k: Vec<i32>,
}

/// Neighbouring heads that see the same.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeadClass {
    /// Query heads of the class.
    pub heads: Range<usize>,
    /// Which of the mask's labels.
    pub labels: usize,
    /// Which far blocks are kept, as [`Strided::column`] has it; none where all are.
    pub column: Option<i32>,
}

/// Rules applied to the tokens of one call; cheap to clone.
#[derive(Clone, Debug)]
pub struct Mask(Arc<Inner>);

static RECENT: Recent = Recent::new();

#[derive(Clone, Debug)]
struct Inner {
    spec: MaskSpec,
    q: TokenMeta,
    k: TokenMeta,
    labels: Vec<Labels>,
    classes: Vec<HeadClass>,
    /// Of every head.
    class_of: Vec<usize>,
    sink: Vec<bool>,
    strided: Option<Strided>,
    list: Option<BlockList>,
    maps: blocks::Maps,
    #[cfg(feature = "cuda-nvrtc")]
    kept: kept::Kept,
}

impl Mask {
    /// Apply `spec` to queries `q` and keys `k` for `heads` query heads.
    ///
    /// # Errors
    /// When batches differ, a window is 0, sinks come without a window or a stride, tokens have an
    /// anchor that the rules do not know or an anchor meets a window, groups or a stride, groups do
    /// not fit the lengths or the heads (see [`Groups`]), or a stride makes no sense (see
    /// [`BlockStride`]).
    pub fn new(spec: MaskSpec, q: TokenMeta, k: TokenMeta, heads: usize) -> Result<Self, Error> {
        if let Some(mask) = RECENT.get(&spec, &q, &k, heads) {
            return Ok(mask);
        }
        let mask = Self::build(spec, q, k, heads)?;
        RECENT.put(&mask);
        Ok(mask)
    }

    /// The same, always a new one that is not remembered: a mask may not keep itself.
    pub(crate) fn build(
        spec: MaskSpec,
        q: TokenMeta,
        k: TokenMeta,
        heads: usize,
    ) -> Result<Self, Error> {
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
        if spec.sinks > 0 && spec.window.is_none() && spec.stride.is_none() {
            let reason = "without a window or a stride every key is visible";
            return Err(Error::mask("sinks", spec.sinks, reason));
        }
        if spec.anchor && (spec.window.is_some() || spec.groups.is_some() || spec.stride.is_some())
        {
            let reason = "a shared anchor excludes windows, groups and strides";
            return Err(Error::mask("anchor", true, reason));
        }
        if !spec.anchor && (q.has_anchor() || k.has_anchor()) {
            let reason = "the rows have an anchor that all documents are to see, and this attention \
                          would hide it";
            return Err(Error::mask("anchor", false, reason));
        }
        let strided = match &spec.stride {
            Some(stride) => Some(Strided::new(stride, &spec, &k, heads)?),
            None => None,
        };
        let labels = match &spec.groups {
            None => {
                vec![Labels { heads: 0..heads, q: q.labels(BLIND_QUERY), k: k.labels(HIDDEN_KEY) }]
            }
            Some(groups) => groups.labels(&q, &k, heads)?,
        };
        let mut of_heads = Vec::with_capacity(heads);
        for (i, of) in labels.iter().enumerate() {
            let column = |head| strided.as_ref().and_then(|s| s.column(head));
            of_heads.extend(of.heads.clone().map(|head| (i, column(head))));
        }
        let (classes, class_of) = classes(&of_heads, None);
        // Positions are not negative (`TokenMeta::new`).
        let sink = k.pos().iter().map(|&p| (p as usize) < spec.sinks).collect();
        Ok(Self(Arc::new(Inner {
            spec,
            q,
            k,
            labels,
            classes,
            class_of,
            sink,
            strided,
            list: None,
            maps: blocks::Maps::default(),
            #[cfg(feature = "cuda-nvrtc")]
            kept: kept::Kept::default(),
        })))
    }

    /// Keep only what `list` names of each block of queries, in place of an earlier list. The
    /// mask's rules stay: a pair is seen where both say so.
    ///
    /// # Errors
    /// When the list is for other numbers of rows, heads or tokens.
    pub fn with_blocks(self, list: BlockList) -> Result<Self, Error> {
        let tokens = [self.0.q.batch(), self.heads(), self.0.q.len(), self.0.k.len()];
        if list.tokens() != tokens {
            return Err(Error::shape(
                "mask",
                format!(
                    "a list of blocks for (batch, heads, queries, keys) {:?}, the mask is for \
                     {tokens:?}",
                    list.tokens()
                ),
            ));
        }
        let of_head = |head: &usize| (self.0.classes[*head].labels, self.0.classes[*head].column);
        let of_heads: Vec<_> = self.0.class_of.iter().map(of_head).collect();
        let mut inner = Arc::unwrap_or_clone(self.0);
        (inner.classes, inner.class_of) = classes(&of_heads, Some(&list));
        inner.list = Some(list);
        inner.maps = blocks::Maps::default();
        #[cfg(feature = "cuda-nvrtc")]
        {
            inner.kept = kept::Kept::default();
        }
        Ok(Self(Arc::new(inner)))
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
        self.0.class_of.len()
    }

    pub(crate) fn classes(&self) -> &[HeadClass] {
        &self.0.classes
    }

    /// Index of the class that query head `head` belongs to.
    pub(crate) fn class_of(&self, head: usize) -> usize {
        self.0.class_of[head]
    }

    pub(crate) fn labels(&self) -> &[Labels] {
        &self.0.labels
    }

    pub(crate) fn sink(&self) -> &[bool] {
        &self.0.sink
    }

    pub(crate) fn strided(&self) -> Option<&Strided> {
        self.0.strided.as_ref()
    }

    /// The blocks that were chosen, where some were.
    pub fn list(&self) -> Option<&BlockList> {
        self.0.list.as_ref()
    }

    /// Whether query `t` of row `b` sees key `s` in query head `h`: the definition.
    pub fn visible(&self, b: usize, h: usize, t: usize, s: usize) -> bool {
        self.sees(&self.classes()[self.class_of(h)], b, t, s)
    }

    fn sees(&self, class: &HeadClass, b: usize, t: usize, s: usize) -> bool {
        let (i, j) = (b * self.0.q.len() + t, b * self.0.k.len() + s);
        let (p, r) = (self.0.q.pos()[i], self.0.k.pos()[j]);
        let labels = &self.0.labels[class.labels];
        (labels.q[i] == labels.k[j] || labels.k[j] == TokenMeta::ANCHOR && labels.q[i] >= 0)
            && (!self.0.spec.causal || r <= p)
            && self.0.spec.window.is_none_or(|w| p as usize - (r as usize) < w || self.0.sink[j])
            && self
                .strided()
                .is_none_or(|strided| strided.sees(class.column, p, r) || self.0.sink[j])
            && self.list().is_none_or(|list| {
                let [q_block, k_block] = list.block();
                list.sees(b, class.heads.start, t / q_block, s / k_block)
            })
    }

    /// The block map at this tile size: which tiles hold nothing, everything or a part.
    pub fn blocks(&self, q_tile: usize, k_tile: usize) -> BlockMap {
        self.0.maps.get(self, q_tile, k_tile)
    }

    /// What a form for cards has made of the mask under `key`, made now if it was not yet.
    #[cfg(feature = "cuda-nvrtc")]
    pub(crate) fn kept<T: std::any::Any + Send + Sync>(
        &self,
        key: [usize; 4],
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        self.0.kept.get(key, make)
    }

    /// Query-key pairs that are visible, over all rows and heads: looked at one by one only in
    /// tiles that are seen in part.
    pub fn pairs(&self) -> u64 {
        let (q_tile, k_tile) = self.counted();
        let tiles = Tiles::new(self, q_tile, k_tile);
        let (rows, columns) = tiles.numbers();
        let mut count = 0u64;
        for class in self.classes() {
            let mut of_class = 0;
            for n in 0..self.0.q.batch() * rows * columns {
                let (b, q, k) = (n / (rows * columns), n / columns % rows, n % columns);
                let (queries, keys) = tiles.spans(q, k);
                of_class += match tiles.kind(b, class, q, k) {
                    BlockKind::Skip => 0,
                    BlockKind::Full => queries.len() * keys.len(),
                    BlockKind::Partial => queries
                        .map(|t| keys.clone().filter(|s| self.sees(class, b, t, *s)).count())
                        .sum(),
                };
            }
            count += (of_class * class.heads.len()) as u64;
        }
        count
    }

    /// Tiles that most likely are whole or empty.
    fn counted(&self) -> (usize, usize) {
        let stride = self.0.spec.stride.map_or(usize::MAX, |stride| stride.block);
        let [q, k] = self.list().map_or([usize::MAX; 2], |list| list.block());
        (q.min(stride).clamp(16, 256), k.min(stride).clamp(16, 256))
    }

    /// Visible pairs over all pairs, 0 to 1.
    pub fn density(&self) -> f64 {
        let all = self.0.q.batch() * self.0.q.len() * self.0.k.len() * self.heads();
        if all == 0 { 0.0 } else { self.pairs() as f64 / all as f64 }
    }

    /// Multiply-add operations times two of one forward pass over the visible pairs alone.
    pub fn flops(&self, head_dim: usize, value_dim: usize) -> f64 {
        2.0 * self.pairs() as f64 * (head_dim + value_dim) as f64
    }
}

/// Neighbouring heads with the same labels, column and lists, and the class of each head.
fn classes(
    of_heads: &[(usize, Option<i32>)],
    list: Option<&BlockList>,
) -> (Vec<HeadClass>, Vec<usize>) {
    let mut classes: Vec<HeadClass> = Vec::new();
    let mut class_of = Vec::with_capacity(of_heads.len());
    for (head, &(labels, column)) in of_heads.iter().enumerate() {
        let last = classes.last_mut().filter(|last| {
            (last.labels, last.column) == (labels, column)
                && list.is_none_or(|list| list.alike(last.heads.start, head))
        });
        match last {
            Some(last) => last.heads.end = head + 1,
            None => classes.push(HeadClass { heads: head..head + 1, labels, column }),
        }
        class_of.push(classes.len() - 1);
    }
    (classes, class_of)
}
