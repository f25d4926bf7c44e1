"""Score a task with transformers, independently of Longburn, and compare item by item.

    longburn eval MODEL --task lambada --data ROWS.jsonl --limit 500 --results RESULTS.jsonl
    python check_scores.py MODEL lambada ROWS.jsonl RESULTS.jsonl

Tasks: lambada (rows with "text"), choices (rows with "query", or ARC's). One row at a time, without
batches or padding; log-softmax in float64 over the float32 logits.
"""

import json
import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-3
PROMPT = "Q: {question}\nA:"


def encode_pair(tokenizer, context, continuation):
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole = tokenizer(context + continuation)["input_ids"]
    alone = tokenizer(context)["input_ids"]
    return alone, whole[len(alone) :]


def loglikelihood(model, context, continuation, limit):
    ids = (context + continuation)[-(limit + 1) :][:-1]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -len(continuation) :].double()
    target = torch.tensor(continuation)
    logp = torch.log_softmax(logits, -1).gather(1, target[:, None]).sum().item()
    return logp, bool((logits.argmax(-1) == target).all())


def lambada(row):
    context, word = row["text"].rsplit(" ", 1)
    return context, [" " + word], None


def choices(row):
    if "query" in row:
        return row["query"], [" " + c for c in row["choices"]], row["gold"]
    gold = row["choices"]["label"].index(row["answerKey"])
    context = PROMPT.replace("{question}", row["question"])
    return context, [" " + c for c in row["choices"]["text"]], gold


def best(values):
    return max(range(len(values)), key=lambda i: (values[i], -i))


def main(directory, task, rows, results):
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    limit = model.config.max_position_embeddings
    with open(results) as lines:
        next(lines)
        found = {item["item"]: item["result"] for item in map(json.loads, lines)}
    with open(rows) as lines:
        rows = [json.loads(line) for line in lines if line.strip()][: len(found)]
    parse = {"lambada": lambada, "choices": choices}[task]
    apart, flips, logps, right = 0.0, 0, [], {"acc": 0, "acc_norm": 0, "acc_bytes": 0}
    for number, row in enumerate(rows):
        context, continuations, gold = parse(row)
        pairs = [encode_pair(tokenizer, context, c) for c in continuations]
        scores = [loglikelihood(model, a, b, limit) for a, b in pairs]
        theirs = found[number]
        theirs = [theirs["word"]] if task == "lambada" else theirs["choices"]
        for (logp, greedy), other in zip(scores, theirs, strict=True):
            apart = max(apart, abs(logp - other["sum"]))
            flips += greedy != other["greedy"]
        if gold is None:
            logps.append(scores[0][0])
            right["acc"] += scores[0][1]
            continue
        sums = [logp for logp, _ in scores]
        texts = [c[1:] for c in continuations]
        for name, size in {
            "acc": lambda t: 1,
            "acc_norm": len,
            "acc_bytes": lambda t: len(t.encode()),
        }.items():
            hit = best([s / size(t) for s, t in zip(sums, texts)]) == gold
            right[name] += hit
            key = {"acc": "right", "acc_norm": "right_norm", "acc_bytes": "right_bytes"}[name]
            flips += hit != found[number][key]
    names = ["acc"] if task == "lambada" else list(right)
    report = {name: right[name] / len(rows) for name in names}
    if logps:
        report["perplexity"] = math.exp(-sum(logps) / len(logps))
    print(json.dumps({"items": len(rows), **report, "largest_difference": apart, "flips": flips}))
    if apart > TOLERANCE or flips or len(rows) != len(found):
        raise SystemExit("the scores differ")


main(*sys.argv[1:])
