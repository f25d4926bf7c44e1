//! Documents of any length into rows of one length.
//!
//! Rows are filled in order, one document behind the other, so that where the source stands is
//! three numbers: epoch, document, token. A document's tokens are each predicted once per epoch,
//! except its first, also where a row ends between them.

use super::batch::shifted;
use super::{Amount, DataReport, IGNORE, Row, Side, TokenBatch, TokenDocument};
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
        let pack = Pack::Concat;
        Self { len, pack, segments: false, eos: None, pad_id: 0, shuffle: false, epochs: None }
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
    /// A length or batch of 0, or no document that can be used.
    pub fn init(
        &self,
        documents: impl Into<Arc<[TokenDocument]>>,
        batch: usize,
        streams: Streams,
    ) -> Result<PackedSource> {
        for (field, value) in [("len", self.len), ("batch", batch)] {
            if value == 0 {
                return Err(Error::config("packing", field, value, "at least 1"));
            }
        }
        let documents = documents.into();
        let mut report = DataReport::default();
        let mut usable = Vec::with_capacity(documents.len());
        for (i, document) in documents.iter().enumerate() {
            let n = document.ids.len();
            let total = n + usize::from(self.eos.is_some());
            if n == 0 {
                report.drop_document("empty", Amount::tokens(0));
                continue;
            }
            if total > self.len && self.pack == Pack::Drop {
                report.drop_document("longer than a row", Amount::tokens(n));
                continue;
            }
            let kept = if self.pack == Pack::Truncate { n.min(self.len) } else { n };
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
    /// When the lists differ from the documents in number or length.
    pub fn with_targets(mut self, targets: impl Into<Arc<[Vec<bool>]>>) -> Result<Self> {
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
        let total = self.documents[document].ids.len() + usize::from(self.config.eos.is_some());
        if self.config.pack == Pack::Truncate { total.min(self.config.len) } else { total }
    }

    /// The next row, filled up to its length; `None` after the last epoch.
    pub(super) fn next_row(&mut self) -> Option<Row> {
        let len = self.config.len;
        let mut row = Row::default();
        let mut pieces = 0;
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
            let room = len - row.ids.len();
            let rest = total - start;
            // Only joined documents are broken at the end of a row; the others open a new one.
            if self.config.pack != Pack::Concat && rest.min(len) > room {
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
        self.report.padding += padding as u64;
        row.pad(len, Side::Right, self.config.pad_id);
        Some(row)
    }

    /// Put tokens `range` of a document behind a row as its `piece`-th.
    fn append(&self, row: &mut Row, document: usize, range: std::ops::Range<usize>, piece: i32) {
        let TokenDocument { id, ids } = &self.documents[document];
        let token = |i: usize| ids.get(i).copied().or(self.config.eos);
        let taken: Vec<u32> = range.clone().filter_map(token).collect();
        let next = (range.end < self.total(document)).then(|| token(range.end)).flatten();
        let mut labels = shifted(&taken, next);
        if let Some(targets) = &self.targets {
            for (label, at) in labels.iter_mut().zip(range.start + 1..) {
                if targets[document].get(at) == Some(&false) {
                    *label = IGNORE;
                }
            }
        }
        row.labels.extend(labels);
        let (first, segment) =
            if self.config.segments { (0, piece) } else { (row.ids.len() as i32, 0) };
        row.pos.extend(first..first + taken.len() as i32);
        row.segment.extend(std::iter::repeat_n(segment, taken.len()));
        row.ids.extend(taken);
        row.sources.push(id.clone());
    }
}
