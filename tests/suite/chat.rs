//! Conversations: templates, rows, training on the assistant's tokens.

mod faults;
mod rows;
mod templates;
mod training;

use longburn::Error;
use longburn::datasets::{ChatTemplate, Message};
use serde_json::Value;

/// Turns of ChatML, each ended by a special token.
const TURNS: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>\
                     {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "t.jinja").unwrap()
}

fn talk(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

/// Place, reason and remedy of a template's error.
fn fault<T>(result: longburn::Result<T>) -> [String; 3] {
    match result {
        Err(Error::Template { place, reason, remedy }) => [place, reason, remedy],
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("an error was expected"),
    }
}

fn messages(list: &Value) -> Vec<Message> {
    Message::parse_list(&list.to_string(), "talk").unwrap()
}
