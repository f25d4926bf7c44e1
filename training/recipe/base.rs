//! The checkpoint that a recipe begins with: a folder, or a repository of the Hub.

use super::sections::Recipe;
use crate::Result;
use crate::models::hub::{HubConfig, Need};
use crate::training::report::Progress;
use std::path::Path;

impl Recipe {
    /// The recipe with its model found on this machine: where `model.path` names no folder but a
    /// repository of the Hub, its snapshot in the cache, downloaded if need be. The recipe keeps
    /// the name. [`crate::training::run_recipe`] does so itself.
    ///
    /// # Errors
    /// As [`crate::models::hub::Hub::locate`].
    pub fn located(&self, need: Need, progress: &Progress) -> Result<Self> {
        let mut recipe = self.clone();
        if let Some(path) = &self.model.path {
            let hub = HubConfig::new().init();
            recipe.base = Some(hub.locate(path, need, &mut progress.download())?);
        }
        Ok(recipe)
    }

    /// Folder of the checkpoint, where there is one.
    pub(super) fn base(&self) -> Option<&Path> {
        self.base.as_deref().or(self.model.path.as_deref())
    }
}
