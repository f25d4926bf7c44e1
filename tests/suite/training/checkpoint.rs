//! The folders of checkpoints: whole or not at all, pruned, verified, one process at a time.

use longburn::training::checkpoint::{Checkpoint, Checkpoints, FORMAT, Inputs, RunLock};
use longburn::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A save of two small files that say which step they are of.
fn save(store: &Checkpoints, step: u64, score: Option<f64>) -> Result<Checkpoint> {
    store.save(step, 100, score, |dir| {
        for name in ["model.safetensors", "state.json"] {
            fs::write(dir.join(name), format!("{name} of step {step}")).unwrap();
        }
        Ok(())
    })
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn steps(store: &Checkpoints) -> Vec<u64> {
    store.good().unwrap().iter().map(Checkpoint::step).collect()
}

/// Where the files of each moment of a save can be found.
fn snapshot(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => snapshot(&path, &target),
            false => _ = fs::copy(&path, target).unwrap(),
        }
    }
}

/// What a kill leaves at any moment of a save is what the disk holds at that moment.
#[test]
fn p1_a_kill_at_any_moment_of_a_save_leaves_the_earlier_checkpoints() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("checkpoints");
    let store = Checkpoints::open(&dir).unwrap();
    save(&store, 1, None).unwrap();
    save(&store, 2, None).unwrap();
    let mut moments: Vec<PathBuf> = Vec::new();
    let saved = store.save(3, 100, None, |staged| {
        for (i, name) in ["model.safetensors", "state.json"].into_iter().enumerate() {
            for length in [0, 3, 12] {
                fs::write(staged.join(name), vec![b'x'; length]).unwrap();
                let moment = root.path().join(format!("moment-{i}-{length}"));
                snapshot(&dir, &moment);
                moments.push(moment);
            }
        }
        Ok(())
    });
    assert_eq!(saved.unwrap().step(), 3);
    assert_eq!(steps(&store), [3, 2]);
    for moment in moments {
        assert_eq!(names(&moment).iter().filter(|n| n.starts_with(".tmp-")).count(), 1);
        let store = Checkpoints::open(&moment).unwrap();
        assert_eq!(names(&moment), ["latest", "step-000001", "step-000002"]);
        assert_eq!(store.newest().unwrap().unwrap().step(), 2);
        save(&store, 3, None).unwrap();
        assert_eq!(store.newest().unwrap().unwrap().step(), 3);
    }
    // The same with the manifest written and the name not yet given.
    let late = root.path().join("late");
    snapshot(&dir, &late);
    fs::rename(late.join("step-000003"), late.join(".tmp-step-000003-77")).unwrap();
    let store = Checkpoints::open(&late).unwrap();
    assert_eq!((steps(&store), names(&late).len()), (vec![2], 2));
}

/// One of the same step is replaced by two renames, and a kill may come between them.
#[test]
#[cfg(target_os = "linux")]
fn p1_a_kill_while_a_checkpoint_is_replaced_leaves_the_old_one() {
    use std::os::fd::AsRawFd;
    let root = tempfile::tempdir().unwrap();
    let store = Checkpoints::open(root.path()).unwrap();
    save(&store, 1, None).unwrap();
    save(&store, 2, None).unwrap();
    // The folder, held open, tells which name it had when it was removed: that of the moment
    // between.
    let standing = root.path().join("step-000002");
    let held = fs::File::open(&standing).unwrap();
    save(&store, 2, Some(0.5)).unwrap();
    let link = fs::read_link(format!("/proc/self/fd/{}", held.as_raw_fd())).unwrap();
    let link = link.to_string_lossy().into_owned();
    let between = PathBuf::from(link.strip_suffix(" (deleted)").unwrap());
    assert_eq!(between.parent(), fs::canonicalize(root.path()).ok().as_deref());
    assert_eq!(names(root.path()), ["latest", "step-000001", "step-000002"]);

    fs::rename(&standing, &between).unwrap();
    snapshot(&root.path().join("step-000001"), &root.path().join(".tmp-step-000002-77"));
    let store = Checkpoints::open(root.path()).unwrap();
    assert_eq!(names(root.path()), ["latest", "step-000001", "step-000002"]);
    let newest = store.newest().unwrap().unwrap();
    assert_eq!((newest.step(), newest.manifest.score), (2, Some(0.5)));
    // And where the new one has its name, the old one goes.
    snapshot(&root.path().join("step-000001"), &between);
    Checkpoints::open(root.path()).unwrap();
    assert_eq!(names(root.path()), ["latest", "step-000001", "step-000002"]);
    save(&store, 2, Some(0.25)).unwrap();
    assert_eq!(store.newest().unwrap().unwrap().manifest.score, Some(0.25));
}

#[test]
fn two_good_checkpoints_and_the_best_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let store = Checkpoints::open(root.path()).unwrap().with_keep(0);
    let scores = [Some(3.0), Some(1.0), None, Some(2.0), Some(f64::NAN), Some(1.5)];
    for (i, score) in scores.into_iter().enumerate() {
        save(&store, i as u64 + 1, score).unwrap();
    }
    assert_eq!(steps(&store), [6, 5, 2]);
    assert_eq!(fs::read_to_string(root.path().join("latest")).unwrap(), "step-000006");
    // A better one takes the place of the best; equal ones do not pile up.
    save(&store, 7, Some(0.5)).unwrap();
    save(&store, 8, Some(0.5)).unwrap();
    save(&store, 9, None).unwrap();
    save(&store, 10, None).unwrap();
    assert_eq!(steps(&store), [10, 9, 8]);

    // Broken ones do not count as good: two are left although three folders were.
    fs::remove_file(root.path().join("step-000010/state.json")).unwrap();
    save(&store, 11, None).unwrap();
    assert_eq!(steps(&store), [11, 9, 8]);
    // Folders with more digits are newer, other names are nobody's business.
    fs::create_dir(root.path().join("step-x")).unwrap();
    let store = store.with_keep(3);
    save(&store, 1_000_000, None).unwrap();
    assert_eq!(steps(&store), [1_000_000, 11, 9, 8]);
    assert!(root.path().join("step-x").is_dir());
}

#[test]
fn broken_checkpoints_are_passed_over_and_replaced() {
    let root = tempfile::tempdir().unwrap();
    let file = |step: u64, name: &str| root.path().join(format!("step-{step:06}")).join(name);
    let store = Checkpoints::open(root.path()).unwrap().with_keep(9);
    for step in 1..=6 {
        save(&store, step, None).unwrap();
    }
    // A flipped bit, a short file, a lost one, half a manifest, none.
    let mut bytes = fs::read(file(6, "model.safetensors")).unwrap();
    bytes[3] ^= 1;
    fs::write(file(6, "model.safetensors"), bytes).unwrap();
    fs::write(file(5, "state.json"), "short").unwrap();
    fs::remove_file(file(4, "state.json")).unwrap();
    fs::write(file(3, "manifest.json"), "{\"format_version\": 1,").unwrap();
    fs::remove_file(file(2, "manifest.json")).unwrap();
    assert_eq!(store.newest().unwrap().unwrap().step(), 1);

    save(&store, 6, None).unwrap();
    let newest = store.newest().unwrap().unwrap();
    assert_eq!(newest.step(), 6);
    newest.verify().unwrap();
    assert!(names(root.path()).iter().all(|name| !name.starts_with('.')));

    fs::write(file(6, "model.safetensors"), "something of other length").unwrap();
    fs::remove_file(file(1, "manifest.json")).unwrap();
    match store.newest() {
        Err(Error::Checkpoint { path, reason, remedy }) => {
            assert_eq!(path, file(6, "model.safetensors"));
            assert!(reason.contains("25 bytes") && remedy.contains("copy"), "{reason}; {remedy}");
        }
        other => panic!("{other:?}"),
    }
}

/// What a flipped bit has spoilt is as long as before, and still no good checkpoint.
#[test]
fn refused_checkpoints_do_not_count_among_those_kept() {
    let root = tempfile::tempdir().unwrap();
    let store = Checkpoints::open(root.path()).unwrap();
    for step in 1..=3 {
        save(&store, step, None).unwrap();
    }
    let spoilt = root.path().join("step-000003/model.safetensors");
    let mut bytes = fs::read(&spoilt).unwrap();
    bytes[3] ^= 1;
    fs::write(&spoilt, bytes).unwrap();
    assert_eq!(store.newest().unwrap().unwrap().step(), 2);
    save(&store, 4, None).unwrap();
    assert_eq!(steps(&store), [4, 3, 2], "2 and 4 are the last two good ones");
    save(&store, 3, None).unwrap();
    save(&store, 5, None).unwrap();
    assert_eq!(steps(&store), [5, 4], "3 was good again");
}

#[test]
fn p2_a_failing_save_leaves_the_earlier_checkpoints() {
    let root = tempfile::tempdir().unwrap();
    let store = Checkpoints::open(root.path()).unwrap();
    save(&store, 1, None).unwrap();
    save(&store, 2, None).unwrap();
    let before = names(root.path());

    // A disk that fills up in the middle of a file.
    let failed = store.save(3, 100, None, |dir| {
        fs::write(dir.join("model.safetensors"), "half").unwrap();
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        Err(Error::io(dir.join("model.safetensors"), full))
    });
    assert!(matches!(failed, Err(Error::Io { .. })));
    assert_eq!(names(root.path()), before);

    // One that is known beforehand to be too full: nothing is even begun.
    let mut begun = false;
    let failed = store.save(3, 1 << 60, None, |_| {
        begun = true;
        Ok(())
    });
    match failed {
        Err(Error::Checkpoint { reason, .. }) => {
            // A tenth more than the bytes themselves.
            assert!(reason.contains(&((1u64 << 60) + (1 << 60) / 10).to_string()), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!begun);
    assert_eq!((steps(&store), names(root.path())), (vec![2, 1], before));
    store.newest().unwrap().unwrap().verify().unwrap();
    save(&store, 3, None).unwrap();
    assert_eq!(steps(&store), [3, 2]);
}

#[test]
fn p3_a_folder_is_held_by_one_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    RunLock::check(root.path()).unwrap();
    assert!(names(root.path()).is_empty());
    let held = RunLock::acquire(root.path()).unwrap();
    for refused in [RunLock::acquire(root.path()).map(drop), RunLock::check(root.path())] {
        match refused {
            Err(Error::Locked { dir, holder }) => {
                assert_eq!(dir, root.path());
                assert_eq!(holder, format!("process {}", std::process::id()));
            }
            other => panic!("{other:?}"),
        }
    }
    drop(held);
    RunLock::acquire(root.path()).unwrap();
}

#[test]
fn p8_a_later_format_is_not_taken_for_a_broken_one() {
    let root = tempfile::tempdir().unwrap();
    let store = Checkpoints::open(root.path()).unwrap();
    save(&store, 1, None).unwrap();
    save(&store, 2, None).unwrap();
    let manifest = root.path().join("step-000002/manifest.json");
    let rewrite = |from: &str, to: &str| {
        let text = fs::read_to_string(&manifest).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&manifest, text.replacen(from, to, 1)).unwrap();
    };
    rewrite(
        &format!("\"format_version\": {FORMAT}"),
        &format!("\"format_version\": {}", FORMAT + 1),
    );
    match store.newest() {
        Err(Error::Unsupported { what, .. }) => {
            assert!(what.contains("`format_version` is 2") && what.contains("1 to 1"), "{what}");
        }
        other => panic!("{other:?}"),
    }
    // What this version does not understand, it does not remove either.
    for step in 3..6 {
        save(&store, step, None).unwrap();
    }
    assert!(manifest.is_file());
    // A manifest does not lead out of its folder.
    rewrite(&format!("\"format_version\": {}", FORMAT + 1), "\"format_version\": 1");
    rewrite("\"state.json\"", "\"../latest\"");
    let error = Checkpoint::open(root.path().join("step-000002")).unwrap_err().to_string();
    assert!(error.contains("../latest"), "{error}");
}

#[test]
fn d6_fingerprints_see_what_changed() {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(root.path().join(name), bytes).unwrap();
    let large = vec![7u8; 3 << 20];
    fs::create_dir(root.path().join("texts")).unwrap();
    write("texts/a.txt", b"some text");
    write("texts/.hidden", b"not read");
    write("large.jsonl", &large);
    let paths = ["texts", "large.jsonl"].map(|name| root.path().join(name));
    let look = || Inputs::of(&paths).unwrap();
    let before = look();
    assert_eq!(before.0.len(), 2);
    let stored: Inputs = serde_json::from_str(&serde_json::to_string(&before).unwrap()).unwrap();
    let said = |part: &str, file: &str| {
        let found = stored.differences(&look());
        assert!(found.len() == 1 && found[0].contains(file), "{found:?}");
        assert!(found[0].contains(part), "{part}: {found:?}");
    };
    // The same bytes again: a small file is known by them alone.
    write("texts/a.txt", b"some text");
    write("texts/.hidden", b"still not read");
    assert!(stored.differences(&look()).is_empty());

    write("texts/a.txt", b"same size");
    said("other contents", "a.txt");
    write("texts/a.txt", b"longer text");
    said("had 9 bytes, has 11", "a.txt");
    write("texts/a.txt", b"some text");
    write("texts/b.txt", b"");
    said("is new", "b.txt");
    fs::remove_file(root.path().join("texts/b.txt")).unwrap();

    // A large one is read whole when its time is another one: a copy is the same,
    let mut seconds = 0;
    let mut write_later = |bytes: &[u8]| {
        write("large.jsonl", bytes);
        let file = fs::File::options().write(true).open(&paths[1]).unwrap();
        seconds += 9;
        let time = std::time::SystemTime::now() + std::time::Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    };
    write_later(&large);
    assert!(stored.differences(&look()).is_empty());
    // another middle is not,
    let mut middle = large.clone();
    middle[3 << 19] = 8;
    write_later(&middle);
    said("between its first and its last mebibyte", "large.jsonl");
    // and where an earlier version kept no sum of it, nothing is known.
    let mut bare = stored.clone();
    bare.0.values_mut().for_each(|stamp| stamp.whole = None);
    let found = bare.differences(&look());
    assert!(found.len() == 1 && found[0].contains("no sum was kept"), "{found:?}");
    // Of a file that was not written since, the sum is taken over.
    let mut told = look();
    told.0.values_mut().for_each(|stamp| stamp.whole = stamp.whole.take().map(|_| "sum".into()));
    assert_eq!(Inputs::since(&paths, Some(&told)).unwrap(), told);
    write_later(&middle);
    let again = Inputs::since(&paths, Some(&told)).unwrap();
    assert_eq!(again.0.values().filter(|stamp| stamp.whole.as_deref() == Some("sum")).count(), 0);
    let mut end = large.clone();
    *end.last_mut().unwrap() = 8;
    write("large.jsonl", &end);
    said("other contents", "large.jsonl");
    fs::remove_file(root.path().join("large.jsonl")).unwrap();
    let found = stored.differences(&Inputs::of(&paths[..1]).unwrap());
    assert!(found.len() == 1 && found[0].contains("is gone"), "{found:?}");
    assert!(matches!(Inputs::of(&paths), Err(Error::Io { .. })));
}
