#!/usr/bin/env python3
"""Kills training runs at random moments, fills their disk, and looks at what is left.

    cargo build && python3 tests/crash/crash.py --write docs/results/crash.md

Every run is tiny and saves after each step, so that many of the blows fall into a save. What is
left is checked here by its manifests, without Longburn's own code, and by going on with the run.
Prints the figures as JSON; with --write, as a page, too. Filling a disk needs the right to mount
a tmpfs; without it that part is left out, and the page says so. Standard library only.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOREVER = 1_000_000_000

RECIPE = """
seed = 7
[model.new]
vocab_size = 300
hidden_size = 32
layers = 2
heads = 4
[data]
train = "texts"
[train]
steps = {steps}
length = 32
batch = 2
micro_batches = 2
lr = 3e-3
schedule = {{ name = "constant", warmup = {{ steps = 20 }} }}
clip = 1.0
[checkpoints]
every = {every}
keep = 2
[output]
dir = "{dir}"
tensorboard = true
refresh_seconds = 1
"""

WORDS = "river mill miller sack flour evening walk home boat count seven stone bridge rain".split()


def lay_out(bench, rng):
    """Texts to train on."""
    (bench / "texts").mkdir()
    for i in range(6):
        text = " ".join(rng.choice(WORDS) for _ in range(200 + 50 * i))
        (bench / "texts" / f"{i}.txt").write_text(text)


def recipe(bench, run, steps=FOREVER, every=1):
    name = f"{pathlib.Path(run).name}-{steps}.toml"
    (bench / name).write_text(RECIPE.format(steps=steps, every=every, dir=run))
    return name


class Process:
    """A training run in a process of its own."""

    def __init__(self, args, bench, file):
        command = [args.binary, "train", file, "--resume", "--threads", "1"]
        # The child appends to it, and it is read here by a handle with a place of its own.
        self.stderr = bench / "stderr.log"
        self.begun = time.monotonic()
        with open(self.stderr, "wb") as stderr:
            self.process = subprocess.Popen(
                command, cwd=bench, stdout=subprocess.DEVNULL, stderr=stderr
            )

    def told(self):
        return self.stderr.read_text(errors="replace")

    def wait_until(self, holds, seconds=60):
        """Whether it came true while the process was alive."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if holds():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        self.end(signal.SIGKILL)
        raise TimeoutError(self.told()[-4000:])

    def end(self, how):
        """Its exit status, negative where a signal ended it."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout=60)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_good(folder):
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        names = {file["name"] for file in manifest["files"]}
        needed = {"model.safetensors", "optimizer.safetensors", "state.json", "config.json"}
        return needed <= names and all(
            (folder / file["name"]).stat().st_size == file["len"]
            and sha256(folder / file["name"]) == file["sha256"]
            for file in manifest["files"]
        )
    except (OSError, ValueError, KeyError):
        return False


def checkpoints(run):
    """(step, good) of all folders that have a checkpoint's name."""
    found = []
    if (run / "checkpoints").is_dir():
        for folder in (run / "checkpoints").glob("step-*"):
            found.append((int(folder.name[5:]), is_good(folder)))
    return sorted(found)


def newest(run):
    """The newest step that `latest` names, without looking into it."""
    try:
        return int((run / "checkpoints" / "latest").read_text()[5:])
    except (OSError, ValueError):
        return 0


class Watch:
    """What a run had before a blow must be there after it, or be outlived by two newer ones."""

    def __init__(self, run):
        self.run = run
        self.good = []
        self.lost = 0
        self.broken = 0

    def look(self):
        now = checkpoints(self.run)
        good = [step for step, whole in now if whole]
        self.broken += len(now) - len(good)
        for step in self.good:
            newer = sum(other > step for other in good)
            if step not in good and newer < 2:
                self.lost += 1
        if self.good and not good:
            self.lost += 1
        self.good = good
        return good[-1] if good else 0


def kill(args, bench, run, rng):
    """`kill -9` at random moments, again and again on one run."""
    file, watch = recipe(bench, run.name), Watch(run)
    first = Process(args, bench, file)
    first.wait_until(lambda: newest(run) >= 3)
    until = time.monotonic() - first.begun + 0.5
    first.end(signal.SIGKILL)
    figures = {"kills": 1, "runs_unusable": 0, "kills_before_a_step": 0, "kills_in_a_save": 0}
    step = watch.look()
    while figures["kills"] < args.kills:
        process = Process(args, bench, file)
        time.sleep(rng.uniform(0, until))
        status = process.end(signal.SIGKILL)
        figures["kills"] += 1
        if status != -signal.SIGKILL:
            figures["runs_unusable"] += 1
            print(process.told())
        staged = list((run / "checkpoints").glob(".tmp-step-*"))
        figures["kills_in_a_save"] += bool(staged)
        after = watch.look()
        figures["kills_before_a_step"] += after == step
        step = after
    return figures | {"checkpoints_lost": watch.lost, "checkpoints_broken": watch.broken}


def terminate(args, bench, run, rng):
    """SIGTERM at random moments: the step ends, is saved, and the exit status is 130."""
    file, watch = recipe(bench, run.name), Watch(run)
    figures = {"signals": 0, "other_exits": 0, "last_step_not_saved": 0}
    watch.look()
    while figures["signals"] < args.signals:
        process = Process(args, bench, file)
        before = newest(run)
        # The handler is in place long before the first step is.
        process.wait_until(lambda: newest(run) > before)
        time.sleep(rng.uniform(0, 0.3))
        status = process.end(signal.SIGTERM)
        figures["signals"] += 1
        if status != 130:
            figures["other_exits"] += 1
            print(process.told())
        lines = (run / "metrics.jsonl").read_text().splitlines()
        steps = [r["step"] for r in map(json.loads, lines) if r["kind"] == "train"]
        figures["last_step_not_saved"] += watch.look() != steps[-1]
    return figures | {"checkpoints_lost": watch.lost, "checkpoints_broken": watch.broken}


def same_bits(args, bench, run):
    """The much-stopped run against one that was never stopped, at the same step."""
    step = [step for step, good in checkpoints(run) if good][-1]
    whole = bench / "whole"
    process = Process(args, bench, recipe(bench, whole.name, steps=step, every=0))
    assert process.process.wait() == 0, process.told()
    folder = pathlib.Path("checkpoints") / f"step-{step:06}"
    names = ["model.safetensors", "optimizer.safetensors", "state.json"]
    equal = [(run / folder / name).read_bytes() == (whole / folder / name).read_bytes()
             for name in names]
    digest = sha256(run / folder / "model.safetensors")
    return {"step": step, "files": names, "equal": all(equal), "model_sha256": digest}


def fill(args, bench, rng):
    """Saves onto a tmpfs that is full, or fills up while they write."""
    disk = bench / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode != 0:
        return None
    try:
        return fill_mounted(args, bench, disk, rng)
    finally:
        subprocess.run(["umount", disk], check=True)


def ballast(path, leave):
    """Take all room of the disk but `leave` bytes."""
    disk = os.statvfs(path.parent)
    free = disk.f_bavail * disk.f_frsize
    if free <= leave:
        return
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, free - leave)
        except OSError:
            # The run itself has taken some of it meanwhile.
            pass


def steps_of(run):
    """Steps in the order in which metrics.jsonl has them; an error where a line is torn."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r["step"] for r in map(json.loads, lines) if r["kind"] == "train"]


def torn_records(run):
    """Event files of TensorBoard that do not end with a whole record."""
    torn = 0
    for file in (run / "tensorboard").iterdir():
        rest = file.read_bytes()
        while len(rest) >= 12:
            rest = rest[16 + int.from_bytes(rest[:8], "little"):]
        torn += bool(rest)
    return torn


def fill_to_the_last_byte(args, bench, disk, run, file, watch):
    """A disk without room for a line: the run must live, and write on when there is room."""
    figures = {"full_to_the_last_byte": 0, "runs_ended": 0, "lines_lost": 0, "lines_torn": 0}
    failed, silent = "no checkpoint of step", "metrics.jsonl can be written again"
    while figures["full_to_the_last_byte"] < args.droughts:
        figures["full_to_the_last_byte"] += 1
        begun, weights = newest(run), []
        if figures["full_to_the_last_byte"] % 2 == 0:
            # Full before the process begins.
            weights.append(disk / "ballast-0")
            ballast(weights[0], 0)
        process = Process(args, bench, file)
        alive = bool(weights) or process.wait_until(lambda: newest(run) > begun)
        # Saves that fail make room again; until metrics, curves and page have all found none.
        def dry():
            weights.append(disk / f"ballast-{len(weights)}")
            ballast(weights[-1], 0)
            told = process.told()
            return all(
                any(name in line and "the run goes on" in line for line in told.splitlines())
                for name in ("metrics.jsonl", "tensorboard", "report.html")
            )
        alive = alive and process.wait_until(dry)
        before = process.told().count(failed)
        alive = alive and process.wait_until(lambda: process.told().count(failed) >= before + 20)
        free = os.statvfs(disk)
        assert not alive or free.f_bavail * free.f_frsize < 4096, "the disk was not full"
        for weight in weights:
            weight.unlink(missing_ok=True)
        before = newest(run)
        alive = alive and process.wait_until(lambda: newest(run) > before)
        alive = alive and process.wait_until(lambda: silent in process.told())
        alive = process.end(signal.SIGTERM) == 130 and alive
        if not alive:
            figures["runs_ended"] += 1
            print(process.told()[-4000:])
        watch.look()
        try:
            steps = steps_of(run)
            # A process tells of all its steps, also of those that it did on a full disk.
            own = range(begun + 1, newest(run) + 1)
            told = set(steps[-len(own):])
            figures["lines_lost"] += sum(step not in told for step in own)
        except ValueError as error:
            figures["lines_torn"] += 1
            print(error)
        figures["lines_torn"] += torn_records(run)
        tidy(run)
    return figures


def tidy(run):
    """What a run writes of itself would fill the small disk in the end."""
    if (run / "metrics.jsonl").stat().st_size > 1 << 20:
        (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "tensorboard", ignore_errors=True)


def fill_mounted(args, bench, disk, rng):
    run = disk / "run"
    file, watch = recipe(bench, "disk/run"), Watch(run)
    process = Process(args, bench, file)
    process.wait_until(lambda: newest(run) >= 3)
    process.end(signal.SIGTERM)
    watch.look()
    folder = run / "checkpoints" / f"step-{watch.good[-1]:06}"
    pages = sum(-(-file.stat().st_size // 4096) for file in folder.iterdir())
    figures = {
        "saves_failed": 0, "refused_beforehand": 0, "failed_while_writing": 0,
        "attempts": 0, "runs_unusable": 0,
    }
    while figures["saves_failed"] < args.fills and figures["attempts"] < 20 * args.fills:
        figures["attempts"] += 1
        weights = [disk / "ballast"]
        failed = "no checkpoint of step"
        # In turn: a disk that is full from the start, and one that fills up under a save.
        suddenly = figures["attempts"] % 2 == 0
        ballast(weights[0], 4096 * (2 * pages if suddenly else rng.randint(8, pages)))
        process = Process(args, bench, file)
        if suddenly:
            # A save that got through all the same clears an older one away: there is room again.
            leave = 4096 * rng.randint(0, pages // 2)
            while process.process.poll() is None and failed not in process.told():
                process.wait_until(
                    lambda: list((run / "checkpoints").glob(".tmp-step-*"))
                    or failed in process.told()
                )
                weights.append(disk / f"ballast-{len(weights)}")
                ballast(weights[-1], leave)
        process.wait_until(lambda: failed in process.told(), seconds=20)
        process.end(signal.SIGKILL)
        told = process.told()
        for line in told.splitlines():
            if failed in line:
                figures["saves_failed"] += 1
                kind = "refused_beforehand" if "a save needs" in line else "failed_while_writing"
                figures[kind] += 1
        watch.look()
        for weight in weights:
            weight.unlink(missing_ok=True)
        # With room again, the run goes on.
        before = newest(run)
        process = Process(args, bench, file)
        figures["runs_unusable"] += not process.wait_until(lambda: newest(run) > before)
        process.end(signal.SIGTERM)
        watch.look()
        tidy(run)
    figures |= fill_to_the_last_byte(args, bench, disk, run, file, watch)
    return figures | {"checkpoints_lost": watch.lost, "checkpoints_broken": watch.broken}


def page(figures):
    kills, signals, full = figures["kill"], figures["sigterm"], figures["full_disk"]
    bits = figures["same_bits"]
    rows = [
        ("`kill -9` at random moments", kills["kills"]),
        ("of them while a checkpoint was being written", kills["kills_in_a_save"]),
        ("of them before the process had saved anything", kills["kills_before_a_step"]),
        ("runs that could not go on", kills["runs_unusable"]),
        ("checkpoints lost", kills["checkpoints_lost"]),
        ("broken checkpoints under a checkpoint's name", kills["checkpoints_broken"]),
        ("SIGTERMs at random moments", signals["signals"]),
        ("exit status other than 130", signals["other_exits"]),
        ("last step not saved", signals["last_step_not_saved"]),
        ("checkpoints lost", signals["checkpoints_lost"]),
    ]
    if full:
        rows += [
            ("saves onto a full disk", full["saves_failed"]),
            ("of them refused before anything was written", full["refused_beforehand"]),
            ("of them failed while writing", full["failed_while_writing"]),
            ("runs that could not go on with room again", full["runs_unusable"]),
            ("disks full to the last byte under a run", full["full_to_the_last_byte"]),
            ("of them that ended the run", full["runs_ended"]),
            ("torn lines of `metrics.jsonl` and torn TensorBoard files", full["lines_torn"]),
            ("steps that `metrics.jsonl` lacked afterwards", full["lines_lost"]),
            ("checkpoints lost", full["checkpoints_lost"]),
            ("broken checkpoints under a checkpoint's name", full["checkpoints_broken"]),
        ]
    table = "\n".join(f"| {what} | {count} |" for what, count in rows)
    note = "" if full else "\nThe full disk was left out: no tmpfs could be mounted.\n"
    equal = "the same bits" if bits["equal"] else "**other bits**"
    return f"""# Stopped at random

Generated by `tests/crash/crash.py`; seed {figures["seed"]}, {figures["seconds"]} s.

A tiny run that saves after every step is stopped in all kinds of ways and goes on each time. After
each blow an independent check reads every manifest and all digests; a checkpoint counts as lost
when it is gone without two newer good ones.

| | |
|---|---:|
{table}
{note}
After all kills and signals the run stood at step {bits["step"]}. A run that was never stopped has
{equal} there: weights, optimizer and training state (`model.safetensors` has SHA-256
`{bits["model_sha256"][:16]}…` in both).
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=ROOT / "target/debug/longburn", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--fills", type=int, default=50)
    parser.add_argument("--droughts", type=int, default=5)
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=pathlib.Path, help="page to write")
    args = parser.parse_args()
    args.binary = args.binary.resolve()
    rng = random.Random(args.seed)
    begun = time.monotonic()
    bench = pathlib.Path(tempfile.mkdtemp(prefix="longburn-crash-"))
    try:
        lay_out(bench, rng)
        run = bench / "run"
        figures = {"seed": args.seed, "kill": kill(args, bench, run, rng)}
        figures["sigterm"] = terminate(args, bench, run, rng)
        figures["same_bits"] = same_bits(args, bench, run)
        figures["full_disk"] = fill(args, bench, rng)
    finally:
        shutil.rmtree(bench)
    figures["seconds"] = round(time.monotonic() - begun)
    print(json.dumps(figures, indent=2))
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(page(figures))
    parts = [figures[part] or {} for part in ("kill", "sigterm", "full_disk")]
    bad = ("runs_unusable", "checkpoints_lost", "checkpoints_broken", "other_exits",
           "last_step_not_saved", "runs_ended", "lines_lost", "lines_torn")
    failures = sum(part.get(name, 0) for part in parts for name in bad)
    return 0 if failures == 0 and figures["same_bits"]["equal"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
