"""airllm beside llama.cpp and beside the original airllm (Python): the same files, threads and limits, in turns, in one run.

Every case prints and keeps medians and their ratios; results go to benches/results (see the page there). `--help` names the cases.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from limits import forget, run

REPOSITORY = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--airllm", default=REPOSITORY / "target/release/airllm", help="the program of this repository")
    cli.add_argument("--llama", type=Path, help="folder with llama-bench, built natively (README.md says how)")
    cli.add_argument("--threads", type=int, default=os.cpu_count())
    cli.add_argument("--runs", type=int, default=5, help="alternating runs; medians are kept")
    cli.add_argument("--name", default="compare", help="name of the result")
    cli.add_argument("--out", type=Path, help="folder for the result, such as benches/results")
    cases = cli.add_subparsers(dest="case", required=True)
    ram = cases.add_parser("ram", help="decoding and a prompt of 512 tokens, all in memory, against llama.cpp")
    ram.add_argument("models", nargs="+", type=Path, help="GGUF files")
    half = cases.add_parser("limit", help="decoding with less memory than the model, against llama.cpp's mmap")
    half.add_argument("model", type=Path, help="a GGUF file")
    half.add_argument("--limit", type=float, required=True, help="GiB of memory for either program, page cache included")
    half.add_argument("--spare", type=float, default=0.1, help="GiB of it that airllm's --ram leaves")
    half.add_argument("--new-tokens", type=int, default=6)
    many = cases.add_parser("many", help="64 sequences at once from disk, against one")
    many.add_argument("model", type=Path)
    many.add_argument("--limit", type=float, required=True)
    many.add_argument("--spare", type=float, default=0.1)
    many.add_argument("--sequences", type=int, default=64)
    many.add_argument("--new-tokens", type=int, default=4)
    original = cases.add_parser("original", help="decoding from disk against airllm 4.0 (Python)")
    original.add_argument("model", type=Path, help="a checkpoint folder of 16 bits")
    original.add_argument("--python", default=sys.executable, help="a Python that has airllm 4.0")
    original.add_argument("--work", type=Path, required=True, help="folder for the original's shards")
    original.add_argument("--limit", type=float, help="GiB of memory for either program")
    original.add_argument("--spare", type=float, default=0.1)
    original.add_argument("--device", default="cpu", help="cpu, or cuda:0 for both programs")
    original.add_argument("--vram", help="budget of GPU memory for airllm, such as 4GB")
    original.add_argument("--bits", nargs="+", default=["16"], choices=["16", "4"], help="each in turn; with 4 the original compresses to NF4")
    original.add_argument("--new-tokens", type=int, default=3)
    args = cli.parse_args()
    if args.case in ("ram", "limit") and args.llama is None:
        cli.error("--llama is needed for this case")
    rows = {"ram": in_memory, "limit": limited, "many": many_sequences, "original": against_original}[args.case](args)
    result = {
        "name": args.name,
        "date": datetime.date.today().isoformat(),
        "machine": machine(args.threads, getattr(args, "device", "cpu")),
        "command": "benches/compare/compare.py " + words(args),
        "commit": output(["git", "-C", REPOSITORY, "rev-parse", "--short", "HEAD"]),
        "rows": rows,
    }
    print(json.dumps(result, indent=2))
    if args.out:
        (args.out / f"{result['date']}-{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")


def ours(args, model, prompt, new, sequences=1, limit=None, spare=0.1, bits=None):
    """What `airllm bench` says, and the most bytes held."""
    command = [args.airllm, "bench", model, "-p", prompt, "-n", new, "-s", sequences, "-r", 1, "--json"]
    command += ["--device", getattr(args, "device", "cpu"), "--threads", args.threads]
    if getattr(args, "vram", None):
        command += ["--vram", args.vram]
    if bits is not None:
        command += ["--bits", bits]
    if limit is not None:
        command += ["--ram", int((limit - spare) * GIB)]
        forget(model)
    text, peak = run(command, limit and int(limit * GIB))
    return json.loads(text), peak


def llama(args, model, prompt, new, limit=None):
    """Tokens a second of the prompt and of decoding by llama-bench, and the most bytes held."""
    if limit is not None:
        forget(model)
    command = [args.llama / "llama-bench", "-m", model, "-t", args.threads, "-p", prompt, "-n", new, "-r", 1, "-o", "json"]
    text, peak = run(command, limit and int(limit * GIB))
    rates = {("prompt" if test["n_prompt"] else "decode"): test["avg_ts"] for test in json.loads(text)}
    return rates, peak


def in_memory(args):
    rows = []
    for model in args.models:
        mine, theirs = [], []
        for _ in range(args.runs):
            theirs.append(llama(args, model, 512, 32)[0])
            mine.append(ours(args, model, 512, 32)[0])
        for what, name in (("decode", "decode"), ("prompt", "prompt of 512")):
            rate = statistics.median(run[what]["tokens_per_s"] for run in mine)
            other = statistics.median(run[what] for run in theirs)
            rows.append(row(f"{model.stem}, {name}", rate, "tokens/s", rate / other, "llama.cpp"))
            rows += expectation(model.stem, name, [run[what] for run in mine])
        shares = [run["physics"]["memory"] for run in mine]
        rate = statistics.median(share["rate"] for share in shares) / 1e9
        # Of the roofs that each run measured the best one: a roof that was reached is one.
        roof = max(share["limit"] for share in shares) / 1e9
        rows.append(row(f"{model.stem}, weights read", rate, "GB/s", rate / roof, "memory read"))
    return rows


def limited(args):
    mine, theirs, peaks = [], [], []
    for _ in range(args.runs):
        theirs.append(llama(args, args.model, 0, args.new_tokens, args.limit)[0]["decode"])
        got, peak = ours(args, args.model, 0, args.new_tokens, limit=args.limit, spare=args.spare)
        mine.append(got)
        peaks.append(peak)
    rate = statistics.median(run["decode"]["tokens_per_s"] for run in mine)
    name = f"{args.model.stem} in {args.limit:g} GiB"
    rows = [row(f"{name}, decode", rate, "tokens/s", rate / statistics.median(theirs), "llama.cpp, mmap")]
    disk = [run["physics"]["disk"] for run in mine]
    read = statistics.median(it["rate"] for it in disk) / 1e9
    limit = statistics.median(it["limit"] for it in disk) / 1e9
    rows.append(row(f"{name}, read from disk", read, "GB/s", read / limit, "the best way to read it"))
    rows += expectation(name, "decode", [run["decode"] for run in mine])
    rows.append(row(f"{name}, peak memory", max(peaks) / GIB, "GiB", max(peaks) / GIB / args.limit, "the limit"))
    return rows


def many_sequences(args):
    one, many = [], []
    for _ in range(args.runs):
        one.append(ours(args, args.model, 0, args.new_tokens, 1, args.limit, args.spare)[0]["decode"])
        many.append(ours(args, args.model, 0, args.new_tokens, args.sequences, args.limit, args.spare)[0]["decode"])
    alone = statistics.median(run["tokens_per_s"] for run in one)
    rate = statistics.median(run["tokens_per_s"] for run in many)
    name = f"{args.model.stem} in {args.limit:g} GiB"
    case = f"{name}, {args.sequences} sequences"
    return [row(case, rate, "tokens/s", rate / alone, "one sequence")] + expectation(case, "decode", many)


def against_original(args):
    """The original keeps nothing between tokens; its times are of whole passes, the first left out."""
    script = Path(__file__).with_name("original.py")
    rows = []
    for bits in args.bits:
        shards = args.work / bits
        shards.mkdir(parents=True, exist_ok=True)
        command = [args.python, script, args.model, shards, args.threads, args.device, "4bit" if bits == "4" else "none"]
        limit = args.limit and int(args.limit * GIB)
        mine, theirs = [], []
        # Each writes its own shards first, without a limit.
        run([*command, 1])
        ours(args, args.model, 0, 1, bits=bits)
        for _ in range(args.runs):
            forget(shards)
            text, _ = run([*command, args.new_tokens], limit)
            theirs.append(json.loads(text.strip().splitlines()[-1])["tokens_per_s"])
            mine.append(ours(args, args.model, 0, args.new_tokens, limit=args.limit, spare=args.spare, bits=bits)[0]["decode"])
        rate = statistics.median(run["tokens_per_s"] for run in mine)
        place = f" in {args.limit:g} GiB" if args.limit else ""
        name = f"{args.model.name}{place}, {bits}-bit, decode on {args.device}"
        rows.append(row(name, rate, "tokens/s", rate / statistics.median(theirs), "airllm 4.0 (Python)"))
    return rows


def expectation(model, what, runs):
    """Measured over expected, of runs that had an expectation."""
    ratios = [run["tokens_per_s"] / run["expected"] for run in runs if run["expected"]]
    if not ratios:
        return []
    expected = statistics.median(run["expected"] for run in runs if run["expected"])
    return [row(f"{model}, {what} as expected", expected, "tokens/s", statistics.median(ratios), "measured over expected")]


def row(case, value, unit, ratio, against):
    three = lambda number: float(f"{number:.3g}")
    print(f"{case}: {three(value)} {unit}, {three(ratio)} of {against}", file=sys.stderr, flush=True)
    return {"case": case, "value": three(value), "unit": unit, "ratio": three(ratio), "against": against}


def words(args):
    """The case and what was said of it, without folders of this machine."""
    models = getattr(args, "models", None) or [args.model]
    said = [args.case, *(model.name for model in models)]
    said += [f"--{name.replace('_', '-')} {getattr(args, name):g}" for name in ("limit", "sequences", "new_tokens", "runs") if getattr(args, name, None)]
    return " ".join(said)


def machine(threads, device):
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    disk = output(["df", "--output=source,fstype", REPOSITORY]).splitlines()[-1].split()
    kernel = f"{platform.system()} {platform.release()}"
    found = {"cpu": cpu, "cores": threads, "ram": f"{total / 1e9:.0f} GB", "disk": " ".join(disk), "kernel": kernel}
    if device.startswith("cuda"):
        found["gpu"] = output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()[0]
    return found


def output(args):
    return subprocess.run([str(arg) for arg in args], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
