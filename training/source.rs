//! Where batches come from, and how a run finds its place again.

use crate::datasets::{Mixture, PackCursor, PackedSource, TokenBatch, WindowSampler};
use crate::{Error, Result};
use serde_json::Value;

/// Gives the batches of a run.
pub trait BatchSource<B> {
    /// Batch `micro` (from 0) of `step` (from 1); none when the data is used up.
    ///
    /// # Errors
    /// When the data cannot be read.
    fn batch(&mut self, step: u64, micro: u32) -> Result<Option<B>>;

    /// Where the source stands; null where a batch follows from step and micro-batch alone.
    fn cursor(&self) -> Value {
        Value::Null
    }

    /// Go to where a source over the same data stood.
    ///
    /// # Errors
    /// When the cursor is not one of this source.
    fn seek(&mut self, cursor: &Value) -> Result<()> {
        let _ = cursor;
        Ok(())
    }
}

/// A function of step and micro-batch.
impl<B, F: FnMut(u64, u32) -> Result<Option<B>>> BatchSource<B> for F {
    fn batch(&mut self, step: u64, micro: u32) -> Result<Option<B>> {
        self(step, micro)
    }
}

impl BatchSource<TokenBatch> for WindowSampler {
    fn batch(&mut self, step: u64, micro: u32) -> Result<Option<TokenBatch>> {
        WindowSampler::batch(self, step, micro).map(Some)
    }
}

impl BatchSource<TokenBatch> for PackedSource {
    fn batch(&mut self, _: u64, _: u32) -> Result<Option<TokenBatch>> {
        self.next_batch()
    }

    fn cursor(&self) -> Value {
        let PackCursor { epoch, index, carry } = PackedSource::cursor(self);
        serde_json::json!({ "epoch": epoch, "index": index, "carry": carry })
    }

    fn seek(&mut self, cursor: &Value) -> Result<()> {
        let cursor: PackCursor = serde_json::from_value(cursor.clone())
            .map_err(|e| Error::Data(format!("{cursor} is no place in packed documents: {e}")))?;
        PackedSource::seek(self, cursor)
    }
}

impl BatchSource<TokenBatch> for Mixture {
    fn batch(&mut self, _: u64, _: u32) -> Result<Option<TokenBatch>> {
        self.next_batch()
    }

    fn cursor(&self) -> Value {
        // Numbers and truth values have a JSON form.
        serde_json::to_value(Mixture::cursor(self)).unwrap_or_default()
    }

    fn seek(&mut self, cursor: &Value) -> Result<()> {
        let cursor = serde_json::from_value(cursor.clone())
            .map_err(|e| Error::Data(format!("{cursor} is no place in a mixture: {e}")))?;
        Mixture::seek(self, &cursor)
    }
}
