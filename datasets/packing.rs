//! Documents of any length into rows of one length.
//!
//! Rows are filled in order, one document behind the other, so that where the source stands is
//! three numbers: epoch, document, token. A document's tokens are each predicted once per epoch,
//! except its first, also where a row ends between them.

use super::anchor::{AnchorEngine, AnchorPacking, PackPositions};
use super::batch::shifted;
use super::{Amount, DataReport, IGNORE, Row, Side, TokenBatch, TokenDocument};
use crate::error::check_sizes;
use crate::streams::{Draw, Purpose, Streams};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What becomes of documents that do not fit into the rest of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pack {
    /// Go on in the next row: documents are joined and chopped, nothing is padded but the end.
    #[default]
    Concat,
    /// Begin in the next row. Those longer than a row are split into rows; nothing is lost.
    Split,
    /// Begin in the next row. Those longer than a row keep its length of tokens.
    Truncate,
    /// Begin in the next row. Those longer than a row are left out.
    Drop,
}

/// How documents become rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackConfig {
    /// Tokens per row.
    pub len: usize,
    /// What becomes of documents that do not fit.
    #[serde(default)]
    pub pack: Pack,
    /// Whether attention and positions know the documents of a row. Without, a row is one
    /// sequence; targets end at documents all the same.
    #[serde(default)]
    pub segments: bool,
    /// Which positions rotary encoding sees, where attention knows the documents.
    #[serde(default)]
    pub positions: PackPositions,
    /// Anchors of the documents; their rows know the documents.
    #[serde(default)]
    pub anchor: Option<AnchorPacking>,
    /// Token put behind every document.
    #[serde(default)]
    pub eos: Option<u32>,
    /// Token that fills rows.
    #[serde(default)]
    pub pad_id: u32,
    /// Whether each epoch has an order of its own.
    #[serde(default)]
    pub shuffle: bool,
    /// Passes over the documents; without end where not given.
    #[serde(default)]
    pub epochs: Option<u64>,
}

impl PackConfig {
    /// Joined and chopped, segments off, no EOS, in the documents' order, endless.
    pub fn new(len: usize) -> Self {
        Self {
            len,
            pack: Pack::Concat,
            segments: false,
            positions: PackPositions::Reset,
            anchor: None,
            eos: None,
            pad_id: 0,
            shuffle: false,
            epochs: None,
        }
    }

    /// Choose what becomes of documents that do not fit.
    pub fn with_pack(mut self, pack: Pack) -> Self {
        self.pack = pack;
        self
    }

    /// Choose whether attention and positions know the documents.
    pub fn with_segments(mut self, segments: bool) -> Self {
        self.segments = segments;
        self
    }

    /// Choose which positions rotary encoding sees.
    pub fn with_positions(mut self, positions: PackPositions) -> Self {
        self.positions = positions;
        self
    }

    /// Put anchors into rows, whose attention knows the documents and whose positions go on through
    /// them, as published.
    pub fn with_anchor(mut self, anchor: AnchorPacking) -> Self {
        (self.segments, self.positions) = (true, PackPositions::Continuous);
        self.anchor = Some(anchor);
        self
    }

    /// Put a token behind every document.
    pub fn with_eos(mut self, eos: Option<u32>) -> Self {
        self.eos = eos;
        self
    }

    /// Choose the token that fills rows.
    pub fn with_pad_id(mut self, pad_id: u32) -> Self {
        self.pad_id = pad_id;
        self
    }

    /// Choose whether each epoch has an order of its own.
    pub fn with_shuffle(mut self, shuffle: bool) -> Self {
        self.shuffle = shuffle;
        self
    }

    /// Stop after so many passes.
    pub fn with_epochs(mut self, epochs: Option<u64>) -> Self {
        self.epochs = epochs;
        self
    }

    /// Rows from these documents, in batches of `batch`.
    ///
    /// # Errors
    /// A length or batch of 0, or no document that can be used; with anchors also a length of 1,
    /// rows that do not know their documents, and a shared anchor inside of a document.
    pub fn init(
        &self,
        documents: impl Into<Arc<[TokenDocument]>>,
        batch: usize,
        streams: Streams,
    ) -> Result<PackedSource> {
        check_sizes("packing", &[("len", self.len), ("batch", batch)])?;
        let room = self.room();
        if let Some(anchor) = &self.anchor {
            if room == 0 {
                return Err(Error::config("packing", "len", 1, "at least 2 with an anchor"));
            }
            if !self.segments {
                return Err(Error::config("packing", "segments", false, "true with an anchor"));
            }
            if anchor.min_len == 0 {
                return Err(Error::config("packing", "anchor.min_len", 0, "at least 1"));
            }
        }
        let documents = documents.into();
        let mut report = DataReport::default();
        let mut usable = Vec::with_capacity(documents.len());
        for (i, document) in documents.iter().enumerate() {
            if let Some(anchor) = &self.anchor {
                let n = document.ids.len();
                if n < anchor.min_len {
                    report.drop_document("shorter than `anchor.min_len`", Amount::tokens(n));
                    continue;
                }
                anchor.check(&document.id, &document.ids)?;
            }
            let n = self.own(document).len();
            let total = n + usize::from(self.eos.is_some());
            if n == 0 {
                report.drop_document("empty", Amount::tokens(0));
                continue;
            }
            if total > room && self.pack == Pack::Drop {
                report.drop_document("longer than a row", Amount::tokens(n));
                continue;
            }
            let kept = if self.pack == Pack::Truncate { n.min(room) } else { n };
            report.kept += Amount::tokens(kept);
            if kept < n {
                report.truncated += Amount::tokens(n - kept);
            }
            usable.push(i);
        }
        if usable.is_empty() {
            return Err(Error::Data(format!(
                "no document can be packed into rows of {} tokens: {report} (remedy: longer rows, \
                 another packing, or other data)",
                self.len
            )));
        }
        let cursor = PackCursor::default();
        let mut source = PackedSource {
            config: self.clone(),
            batch,
            streams,
            order: usable.clone(),
            documents,
            targets: None,
            usable,
            cursor,
            report,
        };
        source.reorder();
        Ok(source)
    }

    /// Tokens of documents that a row holds at most.
    fn room(&self) -> usize {
        self.len - usize::from(self.anchor.is_some())
    }

    /// The tokens of a document without an anchor that it brings along.
    fn own<'a>(&self, document: &'a TokenDocument) -> &'a [u32] {
        let leads = |anchor: &AnchorPacking| anchor.leads(&document.ids);
        &document.ids[usize::from(self.anchor.as_ref().is_some_and(leads))..]
    }

    /// The anchor, where there is one of this kind.
    fn anchor(&self, engine: AnchorEngine) -> Option<&AnchorPacking> {
        self.anchor.as_ref().filter(|anchor| anchor.engine == engine)
    }
}

/// Where a [`PackedSource`] stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackCursor {
    /// Pass over the documents, from 0.
    pub epoch: u64,
    /// Documents of this pass that are used up.
    pub index: usize,
    /// Tokens of the next document that are used up.
    pub carry: usize,
}

/// Rows of one length, in batches, with a cursor that restores the place exactly.
#[derive(Clone, Debug)]
pub struct PackedSource {
    config: PackConfig,
    batch: usize,
    streams: Streams,
    documents: Arc<[TokenDocument]>,
    /// Per document, which of its tokens are to be predicted; all where not given.
    targets: Option<Arc<[Vec<bool>]>>,
    /// Documents that the packing can use, in their own order.
    usable: Vec<usize>,
    /// The same in the order of this epoch.
    order: Vec<usize>,
    cursor: PackCursor,
    report: DataReport,
}

impl PackedSource {
    /// Predict some tokens only: `targets[d][t]` says whether token `t` of document `d` is one.
    ///
    /// # Errors
    /// When the lists differ from the documents in number or length, and for rows with anchors.
    pub fn with_targets(mut self, targets: impl Into<Arc<[Vec<bool>]>>) -> Result<Self> {
        if self.config.anchor.is_some() {
            return Err(Error::Unsupported {
                what: "anchors in rows of which some tokens only are predicted".into(),
                remedy: "leave the anchor out; a conversation begins with a token of its own"
                    .into(),
            });
        }
        let targets = targets.into();
        let fits = |(document, of): (&TokenDocument, &Vec<bool>)| document.ids.len() == of.len();
        if targets.len() != self.documents.len()
            || !self.documents.iter().zip(targets.iter()).all(fits)
        {
            return Err(Error::shape("PackedSource", "targets do not fit the documents"));
        }
        self.targets = Some(targets);
        Ok(self)
    }

    /// The next batch; the last one may have fewer rows, and its last row padding. `None` after
    /// the last epoch.
    ///
    /// # Errors
    /// When a batch cannot be formed; not for documents that `init` accepted.
    pub fn next_batch(&mut self) -> Result<Option<TokenBatch>> {
        TokenBatch::fill(self.batch, self.config.pad_id, || self.next_row())
    }

    /// Where the source stands.
    pub fn cursor(&self) -> PackCursor {
        self.cursor
    }

    /// Go to where a source over the same documents stood.
    ///
    /// # Errors
    /// When the cursor lies outside of these documents.
    pub fn seek(&mut self, cursor: PackCursor) -> Result<()> {
        let before = std::mem::replace(&mut self.cursor, cursor);
        self.reorder();
        let inside = match self.order.get(cursor.index) {
            Some(&document) => cursor.carry < self.total(document),
            None => cursor.index == self.order.len() && cursor.carry == 0,
        };
        if inside {
            return Ok(());
        }
        self.cursor = before;
        self.reorder();
        Err(Error::Data(format!(
            "{cursor:?} does not lie within these {} documents (remedy: resume with the data that \
             the run started with)",
            self.order.len()
        )))
    }

    /// What one pass keeps and loses, and the padding so far.
    pub fn report(&self) -> &DataReport {
        &self.report
    }

    /// Tokens per row.
    pub fn row_len(&self) -> usize {
        self.config.len
    }

    /// The order of the cursor's epoch.
    fn reorder(&mut self) {
        self.order.clone_from(&self.usable);
        if self.config.shuffle {
            let mut rng = self.streams.rng(Purpose::Shuffle, self.cursor.epoch, 0, 0);
            rng.shuffle(&mut self.order);
        }
    }

    /// Tokens of a document as it is packed, EOS included.
    fn total(&self, document: usize) -> usize {
        let own = self.config.own(&self.documents[document]).len();
        let total = own + usize::from(self.config.eos.is_some());
        if self.config.pack == Pack::Truncate { total.min(self.config.room()) } else { total }
    }

    /// Token `i` of a document as it is packed.
    fn token(&self, document: usize, i: usize) -> Option<u32> {
        let own = self.config.own(&self.documents[document]);
        own.get(i).copied().or(self.config.eos).filter(|_| i < self.total(document))
    }

    /// The next row, filled up to its length; `None` after the last epoch.
    pub(super) fn next_row(&mut self) -> Option<Row> {
        let (len, room_of_row) = (self.config.len, self.config.room());
        let mut row = Row::default();
        if self.config.segments
            && (self.config.positions == PackPositions::Continuous
                || self.config.anchor(AnchorEngine::Shared).is_some())
        {
            row.rotary = Some(Vec::with_capacity(len));
        }
        let mut pieces = 0;
        let lead = usize::from(self.config.anchor(AnchorEngine::PerDocument).is_some());
        while row.ids.len() < len {
            if self.cursor.index == self.order.len() {
                if self.config.epochs.is_some_and(|n| self.cursor.epoch + 1 >= n) {
                    break;
                }
                self.cursor = PackCursor { epoch: self.cursor.epoch + 1, index: 0, carry: 0 };
                self.reorder();
            }
            let document = self.order[self.cursor.index];
            let total = self.total(document);
            let start = self.cursor.carry;
            if pieces == 0
                && let Some(anchor) = self.config.anchor(AnchorEngine::Shared)
            {
                anchor.push(&mut row, 0, self.token(document, start));
            }
            let room = len - row.ids.len() - lead;
            let rest = total - start;
            // Only joined documents are broken at the end of a row; the others open a new one.
            if self.config.pack != Pack::Concat && rest.min(room_of_row) > room {
                break;
            }
            let take = rest.min(room);
            self.append(&mut row, document, start..start + take, pieces);
            pieces += 1;
            self.cursor.carry += take;
            if self.cursor.carry == total {
                self.cursor.index += 1;
                self.cursor.carry = 0;
            }
        }
        let padding = len - row.ids.len();
        if padding == len {
            return None;
        }
        if padding == 0 && self.cursor.carry == 0 && self.crosses_borders() {
            let next = self.order.get(self.cursor.index).and_then(|next| self.first(*next));
            self.border(&mut row, next);
        }
        self.report.padding += padding as u64;
        row.pad(len, Side::Right, self.config.pad_id);
        Some(row)
    }

    /// Put tokens `range` of a document behind a row as its `piece`-th.
    fn append(&self, row: &mut Row, document: usize, range: std::ops::Range<usize>, piece: i32) {
        let token = |i: usize| self.token(document, i);
        let anchor = self.config.anchor(AnchorEngine::PerDocument);
        if self.crosses_borders() {
            let next = anchor.map(|anchor| anchor.id).or_else(|| token(range.start));
            self.border(row, next);
        }
        if let Some(anchor) = anchor {
            anchor.push(row, piece, token(range.start));
        }
        let taken: Vec<u32> = range.clone().filter_map(token).collect();
        let mut labels = shifted(&taken, token(range.end));
        if let Some(targets) = &self.targets {
            for (label, at) in labels.iter_mut().zip(range.start + 1..) {
                if targets[document].get(at) == Some(&false) {
                    *label = IGNORE;
                }
            }
        }
        row.labels.extend(labels);
        let (at, n) = (row.ids.len() as i32, taken.len() as i32);
        let (first, segment) = match (self.config.segments, anchor) {
            (false, _) => (at, 0),
            (true, None) => (0, piece),
            (true, Some(_)) => (1, piece),
        };
        row.pos.extend(first..first + n);
        if let Some(rotary) = &mut row.rotary {
            let first = match self.config.positions {
                PackPositions::Continuous => at,
                // Behind the anchor.
                PackPositions::Reset => 1,
            };
            rotary.extend(first..first + n);
        }
        row.segment.extend(std::iter::repeat_n(segment, taken.len()));
        row.ids.extend(taken);
        row.sources.push(self.documents[document].id.clone());
    }

    /// Whether the last token of a document predicts what the row goes on with.
    fn crosses_borders(&self) -> bool {
        self.config.anchor.as_ref().is_some_and(|anchor| !anchor.mask_borders)
    }

    /// What a document's place in a row begins with.
    fn first(&self, document: usize) -> Option<u32> {
        let anchor = self.config.anchor(AnchorEngine::PerDocument).map(|anchor| anchor.id);
        anchor.or_else(|| self.token(document, 0))
    }

    /// Let the last token of a row predict `next`, if it predicts nothing yet.
    fn border(&self, row: &mut Row, next: Option<u32>) {
        if let (Some(label), Some(next)) = (row.labels.last_mut(), next)
            && *label == IGNORE
        {
            *label = i64::from(next);
        }
    }
}
