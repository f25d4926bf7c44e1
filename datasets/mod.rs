//! Text to token sequences: sources, tokenizer, packing, synthetic tasks.

mod anchor;
mod batch;
mod cache;
mod chat;
mod documents;
mod fingerprint;
mod ids;
mod mixture;
mod packing;
mod report;
mod sampler;
pub mod source;
pub mod synthetic;
mod tokenizer;

pub use anchor::{AnchorEngine, AnchorPacking, PackPositions};
pub use batch::{IGNORE, Row, Side, TokenBatch};
pub use cache::{Cached, TokenCache};
pub use chat::{
    ChatRows, ChatTemplate, Conversation, ConversationTokens, Message, encode_conversations,
};
pub use documents::{Encoded, Named, TokenDocument, split, tokenize, with_tokens};
pub use fingerprint::{FileStamp, fingerprint};
pub use ids::TokenIds;
pub use mixture::{Mixture, MixtureCursor, PartCursor};
pub use packing::{Pack, PackConfig, PackCursor, PackedSource};
pub use report::{Amount, DataReport};
pub use sampler::{Window, WindowSampler};
pub use source::{Cursor, Document, DocumentSource};
pub use tokenizer::{BpeConfig, DecodeStream, SpecialIds, Tokenizer, train_bpe};
