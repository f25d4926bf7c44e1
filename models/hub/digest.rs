//! Digests by which the Hub names what it stores.

use crate::{Error, Result};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// What the bytes of a file must amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    /// SHA-256 of the bytes, hexadecimal: files in large storage.
    Sha256(String),
    /// SHA-1 of `blob LENGTH`, a zero and the bytes, hexadecimal: files in git itself.
    Git(String),
}

impl Digest {
    /// The digest that the name of a blob in the cache is, if it is one.
    pub fn of_name(name: &str) -> Option<Self> {
        let hex = name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match name.len() {
            64 if hex => Some(Self::Sha256(name.into())),
            40 if hex => Some(Self::Git(name.into())),
            _ => None,
        }
    }

    /// `sha256` or `git-sha1`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Git(_) => "git-sha1",
        }
    }

    /// Hexadecimal.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }

    /// What the file amounts to instead, `None` where it is right; `read` hears of bytes read.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn differs(&self, path: &Path, read: &mut dyn FnMut(u64)) -> Result<Option<String>> {
        let failed = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut feed = |update: &mut dyn FnMut(&[u8])| {
            let mut buffer = vec![0; 1 << 20];
            loop {
                match file.read(&mut buffer).map_err(failed)? {
                    0 => return Ok::<(), Error>(()),
                    n => {
                        update(&buffer[..n]);
                        read(n as u64);
                    }
                }
            }
        };
        let found = match self {
            Self::Sha256(_) => {
                let mut sha = Sha256::new();
                feed(&mut |bytes| sha.update(bytes))?;
                format!("{:x}", sha.finalize())
            }
            Self::Git(_) => {
                let mut sha = Sha1::new();
                sha.update(format!("blob {length}\0"));
                feed(&mut |bytes| sha.update(bytes))?;
                format!("{:x}", sha.finalize())
            }
        };
        Ok((found != self.hex()).then_some(found))
    }
}
