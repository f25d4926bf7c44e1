//! Windows of one length drawn from documents at random.

use super::{Amount, DataReport, Row, Side, TokenBatch, TokenDocument};
use crate::error::check_sizes;
use crate::streams::{Draw, Purpose, Streams};
use crate::{Error, Result};
use rand_chacha::rand_core::RngCore;
use std::sync::Arc;

/// A stretch of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window<'a> {
    /// Name of the document.
    pub document: &'a str,
    /// Where the window begins in it, tokens.
    pub start: usize,
    /// The tokens.
    pub ids: &'a [u32],
    /// The token behind it, if the document goes on.
    pub next: Option<u32>,
}

/// Draws batches of windows, every window of every document equally often.
///
/// A batch is a pure function of (seed, step, micro-batch): a run that resumes needs the step
/// only.
#[derive(Clone, Debug)]
pub struct WindowSampler {
    documents: Arc<[TokenDocument]>,
    /// (windows in the documents before, document), for those that hold one.
    index: Vec<(usize, usize)>,
    windows: usize,
    len: usize,
    batch: usize,
    streams: Streams,
    report: DataReport,
}

impl WindowSampler {
    /// Windows of `len` tokens, `batch` at a time. Shorter documents are left out and counted.
    ///
    /// # Errors
    /// A length or batch of 0, or no document of at least `len` tokens.
    pub fn new(
        documents: impl Into<Arc<[TokenDocument]>>,
        len: usize,
        batch: usize,
        streams: Streams,
    ) -> Result<Self> {
        check_sizes("window sampling", &[("len", len), ("batch", batch)])?;
        let documents = documents.into();
        let mut report = DataReport::default();
        let (mut index, mut windows) = (Vec::new(), 0);
        for (i, document) in documents.iter().enumerate() {
            let amount = Amount::tokens(document.ids.len());
            if document.ids.len() < len {
                report.drop_document("shorter than a window", amount);
                continue;
            }
            report.kept += amount;
            index.push((windows, i));
            windows += document.ids.len() - len + 1;
        }
        if index.is_empty() {
            return Err(Error::Data(format!(
                "none of {} documents has {len} tokens, the length of a window (remedy: shorter \
                 windows, or pack the documents)",
                documents.len()
            )));
        }
        Ok(Self { documents, index, windows, len, batch, streams, report })
    }

    /// The batch of one micro-batch of a step, positions 0 to T in every row.
    ///
    /// # Errors
    /// When a batch cannot be formed; not for documents that `new` accepted.
    pub fn batch(&self, step: u64, micro_batch: u32) -> Result<TokenBatch> {
        let mut rng = self.streams.rng(Purpose::Window, step, micro_batch, 0);
        let rows = (0..self.batch)
            .map(|_| {
                let window = self.window(&mut rng);
                let source = format!("{}[{}..]", window.document, window.start);
                Row::single(window.ids.to_vec(), window.next, source)
            })
            .collect();
        TokenBatch::stack(rows, Side::Right, 0)
    }

    /// Draw one window.
    pub fn window(&self, rng: &mut (impl RngCore + ?Sized)) -> Window<'_> {
        let drawn = rng.below(self.windows);
        let (before, i) =
            self.index[self.index.partition_point(|(before, _)| *before <= drawn) - 1];
        let TokenDocument { id, ids } = &self.documents[i];
        let start = drawn - before;
        let end = start + self.len;
        Window { document: id, start, ids: &ids[start..end], next: ids.get(end).copied() }
    }

    /// What is sampled from, and what was left out.
    pub fn report(&self) -> &DataReport {
        &self.report
    }
}
