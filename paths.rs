//! Names of files that come from outside.

use std::path::{Component, Path};

/// Whether `name` is that of a file in its folder, on any system: no path and no stream.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    one && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::is_plain_name;

    #[test]
    fn nothing_that_leaves_the_folder_is_plain() {
        for name in ["model.safetensors", "a b", "..x", "serde-1.0.0+meta"] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in ["", ".", "..", "/", "a/b", "a/", "../a", "/a", "a\\b", "C:a", "a:s", "a\0"] {
            assert!(!is_plain_name(name), "{name:?}");
        }
    }
}
