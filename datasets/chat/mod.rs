//! Conversations: their messages, the templates that turn them into text, and the rows that
//! models learn to answer from.

mod date;
mod load;
mod message;
mod python;
mod rows;
mod template;

pub use message::Message;
pub use rows::{ChatRows, Conversation, ConversationTokens, encode_conversations};
pub use template::ChatTemplate;
