"""Read with Python's huggingface_hub the cache that `longburn fetch` left.

    LONGBURN_INTEROP_DIR=DIR cargo test --features hub --test suite python
    python check_hub.py DIR

Nothing here asks the network: whatever is not found in DIR/hub/rust is an error.
"""

import json
import sys
from pathlib import Path

from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache


def main():
    root = Path(sys.argv[1]) / "hub"
    expected = json.loads((root / "expected.json").read_text())
    cache, repo, commit = root / "rust", expected["repo"], expected["commit"]
    snapshot = Path(snapshot_download(repo, cache_dir=cache, local_files_only=True))
    assert snapshot.name == commit, snapshot
    for name, digest in expected["files"].items():
        found = try_to_load_from_cache(repo, name, cache_dir=cache)
        assert isinstance(found, str), f"{name}: {found}"
        # Python takes a blob's name for its ETag.
        assert Path(found).resolve().name == digest, found
    info = scan_cache_dir(cache)
    assert not info.warnings, info.warnings
    (found,) = info.repos
    (revision,) = found.revisions
    assert found.repo_id == repo and found.repo_type == "model", found
    assert revision.commit_hash == commit and revision.refs == {"main"}, revision
    assert {file.file_name for file in revision.files} == set(expected["files"]), revision
    print(f"{len(expected['files'])} files of {repo} found by huggingface_hub")


main()
