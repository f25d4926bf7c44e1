//! Tasks made on the spot, whose answers are known.

mod passkey;

pub use passkey::{
    Passkey, PasskeyConfig, PasskeyPrompt, PasskeyPromptConfig, PasskeySample, PasskeyTemplate,
    insert_statements, stratified_depth,
};
