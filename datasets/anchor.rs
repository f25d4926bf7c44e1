//! An anchor in packed rows (AnchorAttention, 2411.13476): one that all documents of a row share,
//! or one in front of each.

use super::{IGNORE, Row};
use crate::kernel::TokenMeta;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which position numbers rotary encoding sees in a packed row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackPositions {
    /// From 0 on in every document.
    #[default]
    Reset,
    /// From 0 on in every row, through all its documents; anchors are at 0 all the same.
    Continuous,
}

/// Where anchors are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorEngine {
    /// One in front of every document, which it alone sees. All of them have the same embedding and
    /// the same position and see themselves alone, so that they are one key: any mixer that keeps
    /// documents apart trains on it.
    #[default]
    PerDocument,
    /// One in front of the row, for the mixer `anchor`.
    Shared,
}

/// Anchors of packed rows.
///
/// An anchor that a document brings along as its first token is not doubled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorPacking {
    /// The token.
    pub id: u32,
    /// Where it is.
    #[serde(default)]
    pub engine: AnchorEngine,
    /// Documents of fewer tokens, a first anchor included, are left out.
    #[serde(default = "three")]
    pub min_len: usize,
    /// Leave the last token of a document without a target. As published, it is to predict what the
    /// row goes on with.
    #[serde(default)]
    pub mask_borders: bool,
}

fn three() -> usize {
    3
}

impl AnchorPacking {
    /// The published settings for the anchor `id`.
    pub fn new(id: u32) -> Self {
        Self { id, engine: AnchorEngine::default(), min_len: three(), mask_borders: false }
    }

    /// The beginning-of-sequence token or, where the tokenizer has none, the end-of-sequence token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when it has neither.
    pub fn of_tokenizer(bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        bos.or(eos).map(Self::new).ok_or_else(|| {
            Error::Tokenizer(
                "has neither a BOS nor an EOS token that could be the anchor of packed rows \
                 (remedy: name one in tokenizer_config.json)"
                    .into(),
            )
        })
    }

    /// Choose where anchors are.
    pub fn with_engine(mut self, engine: AnchorEngine) -> Self {
        self.engine = engine;
        self
    }

    /// Choose the length from which on documents are used.
    pub fn with_min_len(mut self, tokens: usize) -> Self {
        self.min_len = tokens;
        self
    }

    /// Choose whether the last token of a document has no target.
    pub fn with_mask_borders(mut self, mask: bool) -> Self {
        self.mask_borders = mask;
        self
    }

    /// Whether a document begins with the anchor.
    pub(super) fn leads(&self, ids: &[u32]) -> bool {
        ids.first() == Some(&self.id)
    }

    /// That a shared anchor is nowhere in a document but at its beginning, where it would be an
    /// anchor that its document alone sees.
    pub(super) fn check(&self, name: &str, ids: &[u32]) -> Result<()> {
        let inside = ids.iter().skip(1).position(|id| *id == self.id);
        match inside.filter(|_| self.engine == AnchorEngine::Shared) {
            None => Ok(()),
            Some(at) => Err(Error::Data(format!(
                "{name}: token {} is the anchor {} (remedy: take such documents apart, or put an \
                 anchor in front of each by engine = \"per_document\")",
                at + 1,
                self.id
            ))),
        }
    }

    /// Put an anchor behind a row, in front of document `piece`; `next` is the token behind it.
    pub(super) fn push(&self, row: &mut Row, piece: i32, next: Option<u32>) {
        let shared = self.engine == AnchorEngine::Shared;
        row.ids.push(self.id);
        row.labels.push(next.map_or(IGNORE, i64::from));
        row.pos.push(0);
        row.segment.push(if shared { TokenMeta::ANCHOR } else { piece });
        if let Some(rotary) = &mut row.rotary {
            rotary.push(0);
        }
    }
}
