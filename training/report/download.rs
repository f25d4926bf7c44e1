//! Downloads, shown as stages.

use super::Progress;
use super::progress::BYTES;
use crate::models::hub::FetchEvent;

impl Progress {
    /// Shows what a download reports: a bar with rate and time left, and its lines.
    pub fn download(&self) -> impl FnMut(FetchEvent) + use<> {
        let (progress, mut stage) = (self.clone(), None);
        move |event| match event {
            FetchEvent::Note(line) => progress.println(&line),
            FetchEvent::Begin { title, bytes } => {
                stage = Some(progress.stage(&title, Some(bytes), BYTES));
            }
            FetchEvent::Bytes(more) => {
                if let Some(stage) = &mut stage {
                    stage.advance(more);
                }
            }
            FetchEvent::End => drop(stage.take()),
        }
    }
}
