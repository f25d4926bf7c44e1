//! What others see of a run under way: TensorBoard's event files, the page that reloads itself.

use longburn::training::report::{EventWriter, LivePage, Report};
use std::path::Path;
use std::time::Duration;

/// CRC-32C, bit by bit.
fn crc(data: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !data.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

/// Payloads of the records of an event file; checksums must be right.
fn records(file: &[u8]) -> Vec<&[u8]> {
    let masked = |data: &[u8]| crc(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    let (mut rest, mut all) = (file, Vec::new());
    while !rest.is_empty() {
        let (head, after) = rest.split_at(12);
        let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
        assert_eq!(head[8..], masked(&head[..8]), "checksum of a length");
        let (payload, after) = after.split_at(length);
        let (checksum, after) = after.split_at(4);
        assert_eq!(checksum, masked(payload), "checksum of a payload");
        all.push(payload);
        rest = after;
    }
    all
}

/// Field number and raw value of a protocol buffer's fields; varints as eight bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = message.split_first().unwrap();
            *message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut all = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let length = match key & 7 {
            0 => {
                all.push((key >> 3, varint(&mut message).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut message) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = message.split_at(length);
        all.push((key >> 3, value.to_vec()));
        message = rest;
    }
    all
}

/// (step, tag, value) of every scalar in an event file, after the record with the version.
pub fn scalars(path: &Path) -> Vec<(u64, String, f32)> {
    let file = std::fs::read(path).unwrap();
    let mut events = records(&file).into_iter().map(fields);
    let version = events.next().unwrap();
    assert!(version.contains(&(3, b"brain.Event:2".to_vec())), "{version:?}");
    let mut all = Vec::new();
    for event in events {
        let of = |field: u64| &event.iter().find(|(f, _)| *f == field).expect("a field").1;
        let time = f64::from_le_bytes(of(1)[..].try_into().unwrap());
        assert!((1.6e9..1e10).contains(&time), "{time}");
        let step = u64::from_le_bytes(of(2)[..].try_into().unwrap());
        for (field, value) in fields(of(5)) {
            assert_eq!(field, 1);
            let value = fields(&value);
            let tag = String::from_utf8(value[0].1.clone()).unwrap();
            all.push((step, tag, f32::from_le_bytes(value[1].1[..].try_into().unwrap())));
        }
    }
    all
}

#[test]
fn event_files_hold_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = EventWriter::create(dir.path()).unwrap();
    let long = "x".repeat(300);
    events.scalars(1, &[("train/loss", 2.5), ("train/lr", 1e-4)]).unwrap();
    events.scalars(1 << 40, &[(&long, f64::NAN)]).unwrap();
    let read = scalars(events.path());
    assert_eq!(read[0], (1, "train/loss".into(), 2.5));
    assert_eq!(read[1], (1, "train/lr".into(), 1e-4));
    assert_eq!((read[2].0, read[2].1.as_str(), read.len()), (1 << 40, &*long, 3));
    assert!(read[2].2.is_nan());
    let other = EventWriter::create(dir.path()).unwrap();
    assert_ne!(events.path(), other.path(), "a second run in a folder has a file of its own");
    assert!(other.path().file_name().unwrap().to_str().unwrap().contains("tfevents"));
}

#[test]
fn the_live_page_reloads_itself_and_the_last_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.html");
    let read = || std::fs::read_to_string(&path).unwrap();
    let page = |text: &'static str| move || Ok(Report::new("Run", text));
    let mut live = LivePage::new(&path, Duration::from_secs(3600));
    live.update(page("first")).unwrap();
    live.update(page("too early")).unwrap();
    assert!(read().contains("first"));
    assert!(read().contains(r#"<meta http-equiv="refresh" content="3600">"#));
    let mut often = LivePage::new(&path, Duration::from_nanos(1));
    often.update(page("second")).unwrap();
    often.update(page("third")).unwrap();
    assert!(read().contains("third"));
    let mut never = LivePage::new(&path, Duration::ZERO);
    never.update(page("never")).unwrap();
    assert!(read().contains("third"));
    page("last")().unwrap().save(&path).unwrap();
    assert!(read().contains("last") && !read().contains("refresh"));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary file is left: {left:?}");
}
