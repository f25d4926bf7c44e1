"""PyTorch, on the CPU or a card, beside `longburn bench`, which starts this folder and tells it, line by line,
what to do:

    {"job": {...}, "code": "sdpa", "threads": 2, "device": "cpu", "folder": null, "tiny": null}
        -> {"ready": true, "version": "torch ...", "probe": [{"name": "out", ...}, ...]}
    {"import": ["transformers"]}
        -> {"ready": true}             where Python has these
    {"run": 3}
        -> {"seconds": 0.012}          per run, over three runs

With "tiny" (the same job in small) the answer is {"peak_bytes": ...} and the program ends. By hand:

    python benches/peers/torch_peer --threads 2 --repeats 5 --job '{"what": "matmul",
        "batch": 1, "m": 512, "k": 512, "n": 512, "layout": "nn"}'

prints name, version, seconds (the median) and samples, as a row of `longburn bench` has them.
Inputs come from the formula of examples/cli/bench/inputs.rs, weights from a folder in Hugging
Face form (without one, of a model of that shape: by the formula, too).
"""

import argparse
import importlib
import json
import statistics
import sys

try:
    import torch

    from attention import attention_job
    from generation import Generate
    from inputs import probe, timed
    from layers import loss_job, matmul_job
    from llama import TrainStep, block_job
    from scans import scan_job
except ImportError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit(1)

JOBS = {
    "attention": attention_job,
    "matmul": matmul_job,
    "linear-loss": loss_job,
    "scan": scan_job,
    "block": block_job,
    "train-step": TrainStep,
    "generate": Generate,
}


def resident(field):
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field):
                return int(line.split()[1]) << 10
    return None


def most(run):
    """Most memory of a run beyond what there was; none where the system does not say."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        reset = True
    except OSError:
        reset = False
    try:
        before, peak = resident("VmRSS"), resident("VmHWM")
        run()
        after = resident("VmHWM")
    except OSError:
        return None
    return max(after - before, 0) if reset or after > peak else None


def prepare(order):
    job = order["job"]
    if job["what"] not in JOBS:
        raise ValueError(f"no such job: {job['what']}")
    return JOBS[job["what"]](job, order.get("code", "sdpa"), order.get("folder"))


def first(order):
    torch.set_num_threads(order["threads"])
    torch.set_default_device(order.get("device") or "cpu")
    if order.get("tiny"):
        prepare({**order, "job": order["tiny"]})()
        run = prepare(order)
        if order["job"]["what"] == "train-step":
            run()  # makes the moments
        return {"peak_bytes": most(run)}, None
    run = prepare(order)
    found = run.probe() if hasattr(run, "probe") else probe(run())
    version = getattr(run, "version", f"torch {torch.__version__}")
    return {"ready": True, "version": version, "probe": found}, run


def serve():
    run = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "run" in order:
                answer = {"seconds": timed(run, order["run"])}
            elif "import" in order:
                for name in order["import"]:
                    importlib.import_module(name)
                answer = {"ready": True}
            else:
                run = None  # what the job before holds
                answer, run = first(order)
        except Exception as error:  # whoever asked has to hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def by_hand():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--job", required=True, type=json.loads)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--code", default="sdpa", choices=["sdpa", "flex"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder")
    args = parser.parse_args()
    ready, run = first(vars(args))
    timed(run, 1)
    samples = [timed(run, 1) for _ in range(args.repeats)]
    peer = {"name": "torch", "version": ready["version"], "seconds": statistics.median(samples)}
    print(json.dumps({**peer, "samples": samples}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        by_hand()
    else:
        serve()
