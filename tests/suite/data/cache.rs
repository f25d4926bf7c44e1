use super::{bpe, message, tokenizer};
use longburn::datasets::source::SourceOptions;
use longburn::datasets::{Cached, TokenCache, Tokenizer, tokenize, with_tokens};
use std::fs;
use std::path::Path;

fn load(folder: &Path, tokenizer: &Tokenizer, options: &SourceOptions) -> Cached {
    let cache = TokenCache::new(folder.join("cache"));
    cache.documents(&folder.join("texts"), options, tokenizer, true).unwrap()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("texts")).unwrap();
    for (name, text) in [("a.txt", "The river is near."), ("b.txt", "<|endoftext|>"), ("c.txt", "")]
    {
        fs::write(folder.path().join("texts").join(name), text).unwrap();
    }
    fs::write(folder.path().join("texts/d.txt"), "The lamp, the garden. ".repeat(90)).unwrap();
    folder
}

#[test]
fn tokens_come_from_the_disk_the_second_time() {
    let folder = folder();
    let options = SourceOptions::new();
    let first = load(folder.path(), tokenizer(), &options);
    assert!(first.rebuilt.as_ref().unwrap().contains("not there"));
    let written = fs::metadata(&first.file).unwrap().modified().unwrap();
    let second = load(folder.path(), tokenizer(), &options);
    assert_eq!((second.rebuilt, &second.report), (None, &first.report));
    assert_eq!(fs::metadata(&second.file).unwrap().modified().unwrap(), written);

    let mut source = options.open(folder.path().join("texts")).unwrap();
    let (plain, report) = tokenize(&source.read_all().unwrap(), tokenizer(), true).unwrap();
    let (cached, cached_report) = with_tokens(second.documents, tokenizer());
    assert_eq!((cached, cached_report), (plain, report));
    assert_eq!(&first.report, source.report());
    // The folder holds the file and nothing else.
    assert_eq!(fs::read_dir(folder.path().join("cache")).unwrap().count(), 1);
}

#[test]
#[cfg(unix)]
fn p1_what_killed_runs_left_goes_and_files_are_for_all_who_may_read() {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};
    let folder = folder();
    let cache = folder.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let file = |name: &str, age: u64| {
        let file = fs::File::create(cache.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        file
    };
    file(".longburn-killed.tmp", 3600);
    file(".longburn-begun.tmp", 1);
    file("notes.txt", 3600);
    // Another process that has not written for long.
    let held = file(".longburn-held.tmp", 3600);
    held.lock().unwrap();
    let first = load(folder.path(), tokenizer(), &SourceOptions::new());
    let mut names: Vec<_> = fs::read_dir(&cache)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let own = first.file.file_name().unwrap().to_string_lossy();
    let mut expected = [".longburn-begun.tmp", ".longburn-held.tmp", &own, "notes.txt"];
    expected.sort_unstable();
    assert_eq!(names, expected);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&first.file), mode(&cache.join("notes.txt")));
}

#[test]
fn other_text_tokens_or_settings_make_another_file() {
    let folder = folder();
    let options = SourceOptions::new();
    let first = load(folder.path(), tokenizer(), &options);
    let others = [
        load(folder.path(), &bpe(290), &options),
        load(folder.path(), tokenizer(), &options.clone().with_line_cap(Some(10_000))),
        {
            fs::write(folder.path().join("texts/a.txt"), "The river is wide.").unwrap();
            load(folder.path(), tokenizer(), &options)
        },
    ];
    for other in &others {
        assert!(other.rebuilt.is_some());
        assert_ne!(other.file, first.file);
    }
    assert_ne!(others[2].documents, first.documents);
    // The map of a file that is taken away stays whole.
    fs::remove_dir_all(folder.path().join("cache")).unwrap();
    assert_eq!(first.documents.last(), others[2].documents.last());
    let empty = tempfile::tempdir().unwrap();
    fs::write(empty.path().join("x.txt"), " ").unwrap();
    let cache = TokenCache::new(empty.path().join("cache"));
    let nothing = cache.documents(empty.path(), &options, tokenizer(), true);
    assert!(message(nothing).contains("no document"));
}

#[test]
fn damaged_and_foreign_caches_are_made_anew() {
    let folder = folder();
    let options = SourceOptions::new();
    let first = load(folder.path(), tokenizer(), &options);
    let good = fs::read(&first.file).unwrap();
    let table = good.iter().rposition(|byte| *byte == b'[').unwrap();
    let mut damages: Vec<(Vec<u8>, &str)> = Vec::new();
    for len in [0, 5, 127, 128, 200, good.len() - 1] {
        damages.push((good[..len].to_vec(), ""));
    }
    for at in [0, 9, 12, 16, 20, 28, 40, 100, 127, 128, 300, table, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        damages.push((bytes, ""));
    }
    damages.push(([&good[..], b"more"].concat(), "behind its header"));
    let other = load(folder.path(), &bpe(290), &options);
    damages.push((fs::read(&other.file).unwrap(), "other text, tokens or settings"));
    damages.push((b"{\"text\": \"no cache at all\"}".repeat(9), "no token cache"));
    for (bytes, reason) in damages {
        // Beside it and renamed: `first` still looks at the old file.
        let beside = folder.path().join("beside");
        fs::write(&beside, bytes).unwrap();
        fs::rename(&beside, &first.file).unwrap();
        let again = load(folder.path(), tokenizer(), &options);
        let why = again.rebuilt.expect("a damage that went unnoticed");
        assert!(why.contains(reason), "{why}");
        assert_eq!(again.documents, first.documents);
        assert_eq!(fs::read(&first.file).unwrap(), good);
    }
}
