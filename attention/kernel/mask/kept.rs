//! What forms for cards make of a mask and keep with it, since all layers and both passes need the same.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

/// By keys of their own choice; a key belongs to one type.
#[derive(Default)]
pub(super) struct Kept(Mutex<Vec<Entry>>);

type Entry = ([usize; 4], Arc<dyn Any + Send + Sync>);

/// A mask that is cloned is about to become another one.
impl Clone for Kept {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept")
    }
}

impl Kept {
    pub fn get<T: Any + Send + Sync>(&self, key: [usize; 4], make: impl FnOnce() -> T) -> Arc<T> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().find(|(of, _)| *of == key).map(|(_, value)| value.clone());
        if let Some(value) = found.and_then(|value| value.downcast().ok()) {
            return value;
        }
        let value = Arc::new(make());
        all.push((key, value.clone()));
        value
    }
}
