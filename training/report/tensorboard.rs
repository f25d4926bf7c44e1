//! TensorBoard event files, scalars only: <https://www.tensorflow.org/tensorboard>.
//!
//! A file is a run of TFRecords: length (u64), masked CRC-32C of its eight bytes (u32), payload,
//! masked CRC-32C of the payload (u32), little-endian. The payload is a protocol buffer, `Event {
//! 1: double wall_time, 2: int64 step, 3: string file_version | 5: Summary }` with `Summary { 1:
//! repeated Value { 1: string tag, 2: float simple_value } }`.

use super::append::Appender;
use crate::{Error, Result};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes scalars to an event file, each step handed to the system when the call returns. A step
/// for which the disk has no room is left out; TensorBoard would stop reading at half a record.
///
/// ```
/// use longburn::training::report::EventWriter;
/// let dir = tempfile::tempdir().map_err(|e| longburn::Error::io("temporary folder", e))?;
/// let mut events = EventWriter::create(dir.path())?;
/// events.scalars(1, &[("train/loss", 2.5), ("train/lr", 1e-4)])?;
/// # Ok::<(), longburn::Error>(())
/// ```
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    out: Appender,
}

impl EventWriter {
    /// Begin a new file in `dir`, which is made if need be. TensorBoard joins the files of a
    /// folder, in order of their names, which begin with the time.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let (started, process) = (now() as u64, std::process::id());
        let mut number = 0;
        let (path, file) = loop {
            let name = format!("events.out.tfevents.{started:010}.longburn.{process}.{number}");
            let path = dir.join(name);
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(Error::io(path, e)),
            }
        };
        let mut writer = Self { out: Appender::new(path.clone(), file), path };
        let mut event = Message::default();
        event.double(1, now());
        event.bytes(3, b"brain.Event:2");
        if let Err(error) = writer.out.append(&record(&event.0)) {
            // Nothing would ever be in it.
            let _ = std::fs::remove_file(&writer.path);
            return Err(error);
        }
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Append values of `step` by their tags; `train/loss` stands in group `train`.
    ///
    /// # Errors
    /// [`Error::Io`], such as a full disk.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut one = Message::default();
            one.bytes(1, tag.as_bytes());
            one.float(2, *value as f32);
            summary.bytes(1, &one.0);
        }
        let mut event = Message::default();
        event.double(1, now());
        event.integer(2, step);
        event.bytes(5, &summary.0);
        self.out.append(&record(&event.0))
    }
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(payload.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(payload);
    record.extend(masked_crc(payload).to_le_bytes());
    record
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Rotated and shifted, so that the checksum of data that holds checksums is not degenerate.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protocol buffer under way.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Field number and wire type: 0 varint, 1 eight bytes, 2 with its length, 5 four bytes.
    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }
}

#[cfg(test)]
mod tests {
    use super::masked_crc;

    #[test]
    fn checksum_is_castagnolis_and_masked() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        // ((crc >> 15) | (crc << 17)) + 0xa282ead8, modulo 2³².
        assert_eq!(masked_crc(&[0; 32]), 0x0fd7_fffa);
    }
}
