"""The programs that are measured, and what they print."""

import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path


class Failed(Exception):
    """A program ended with an error; the last lines that it wrote."""


def run(args, quiet=False):
    """Standard output of a program; what it writes to standard error comes in the exception, if it fails."""
    args = [str(arg) for arg in args]
    if not quiet:
        print("$ " + " ".join(args), file=sys.stderr, flush=True)
    done = subprocess.run(args, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise Failed(f"{' '.join(args)}: exit {done.returncode}: " + "\n".join(said))
    # llama.cpp's programs write results to one or the other, depending on the version.
    return done.stdout, done.stderr


class Airllm:
    """The program of this repository."""

    def __init__(self, binary, context, chunks, ram):
        self.binary, self.context, self.chunks = binary, context, chunks
        self.memory = ["--ram", ram] if ram else []

    def evaluate(self, model, text, reference=None):
        """The object of `airllm eval --json`."""
        args = [self.binary, "--model", model, "eval", "--text", text, "--context", self.context, "--json"]
        args += ["--reference", reference] if reference else []
        args += ["--chunks", self.chunks] if self.chunks else []
        out, _ = run(args + self.memory)
        return json.loads(out)

    def prepare(self, model, to, options):
        run([self.binary, "prepare", model, "--out", to, "--offline", *options, *self.memory])

    def ids(self, model, text):
        out, _ = run([self.binary, "--model", model, "tokenize", "--file", text, "--json"], quiet=True)
        return json.loads(out)["ids"]


class Llama:
    """llama.cpp's programs, in one folder."""

    def __init__(self, folder, context, chunks, threads):
        self.folder, self.context, self.chunks, self.threads = Path(folder), context, chunks, threads
        for name in ["llama-quantize", "llama-imatrix", "llama-perplexity", "llama-tokenize"]:
            if not (self.folder / name).exists():
                raise SystemExit(f"{self.folder / name}: not found; --llama names the folder of llama.cpp's programs")

    def version(self):
        """What `--version` says, without the lines on what it was compiled with."""
        out, err = run([self.folder / "llama-perplexity", "--version"], quiet=True)
        found = re.search(r"version: (.*)", out + err)
        return found.group(1) if found else "unknown"

    def ids(self, gguf, text):
        out, _ = run(
            [self.folder / "llama-tokenize", "-m", gguf, "-f", text, "--ids", "--no-escape", "--no-parse-special", "--log-disable"],
            quiet=True,
        )
        return json.loads(out[out.index("[") :])

    def imatrix(self, gguf, text, to):
        run([self.folder / "llama-imatrix", "-m", gguf, "-f", text, "-o", to, *self.common()])

    def quantize(self, gguf, to, kind, imatrix=None):
        """Quantises, and says which tensors could not have the type that they should have."""
        with_imatrix = ["--imatrix", imatrix] if imatrix else []
        out, err = run([self.folder / "llama-quantize", *with_imatrix, gguf, to, kind, self.threads])
        found = re.search(r"(\d+) of (\d+) tensor\(s\) required fallback", out + err)
        return int(found.group(1)) if found else 0

    def perplexity(self, gguf, text, save=None):
        """Perplexity and its standard error; the logits are saved for `divergence`, if a file is named."""
        args = [self.folder / "llama-perplexity", "-m", gguf, "-f", text, *self.common(), *self.limit()]
        out, err = run(args + (["--kl-divergence-base", save] if save else []))
        number = r"([0-9.]+(?:e[-+]?\d+)?) \+/- ([0-9.]+)"
        found = re.search(r"Final estimate: PPL = " + number, out + err)
        if not found:
            raise Failed(f"llama-perplexity: no final estimate in what it printed: {(out + err)[-400:]}")
        return float(found.group(1)), float(found.group(2))

    def divergence(self, gguf, saved):
        """What `--kl-divergence` says against saved logits."""
        args = [self.folder / "llama-perplexity", "-m", gguf, "--kl-divergence", "--kl-divergence-base", saved]
        out, err = run(args + self.common() + self.limit())
        value = lambda name: float(re.search(name + r"\s*:\s*(-?[0-9.]+)", out + err).group(1))
        return {
            "perplexity": value(r"Mean PPL\(Q\)"),
            "kl": value(r"Mean\s+KLD"),
            "kl_99": value(r"99\.0%\s+KLD"),
            "top1": value("Same top p") / 100,
        }

    def common(self):
        # A text is taken as it is: a backslash in it is a backslash.
        batch = max(512, self.context)
        return ["-c", self.context, "-b", batch, "-t", self.threads, "-ngl", 0, "--no-escape"]

    def limit(self):
        return ["--chunks", self.chunks] if self.chunks else []


def check_ids(airllm, llama, folder, gguf, text):
    """Whether the folder's tokenizer, ours of the GGUF file, and llama.cpp's give the same ids; says where they do not.

    Number of ids by the first, and for the others how many of those they do not have.
    """
    truth = airllm.ids(folder, text)
    missing = {}
    for who, ids in [("airllm, GGUF", airllm.ids(gguf, text)), ("llama.cpp", llama.ids(gguf, text))]:
        missing[who] = sum((Counter(truth) - Counter(ids)).values())
        if ids != truth:
            at = next((i for i, (a, b) in enumerate(zip(ids, truth)) if a != b), min(len(ids), len(truth)))
            what = f"{len(ids)} ids for {len(truth)}, the first other one is number {at}"
            print(f"{Path(text).name}: the ids of {who} are not the folder's: {what}", file=sys.stderr)
            missing[who] = max(missing[who], 1)
    return len(truth), missing


def machine():
    """The circumstances, as benches/results has them."""

    def field(file, key):
        try:
            lines = Path(file).read_text("utf-8").splitlines()
        except OSError:
            return None
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)

    memory = field("/proc/meminfo", "MemTotal")
    return {
        "cpu": field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "ram": f"{int(memory.split()[0]) * 1024 / 1e9:.0f} GB" if memory else "unknown",
        "disk": first_line(["findmnt", "-n", "-o", "SOURCE,FSTYPE", "-T", "."]),
        "kernel": first_line(["uname", "-sr"]),
    }


def first_line(args):
    try:
        return " ".join(run(args, quiet=True)[0].splitlines()[0].split())
    except (Failed, OSError, IndexError):
        return "unknown"
