#!/usr/bin/env python3
"""Quality for bytes: `airllm prepare` against llama.cpp's quantisation, one model, one evaluator, one run. See README.md."""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import gguf_files
import report
import tools

NEAREST = [2, 3, 4, 5, 6]
AVERAGES = ["2.5", "3.0", "3.5", "4.0", "4.5", "5.0", "6.0"]
K_QUANTS = ["Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K"]
CHECK = "Q8_0"
CROSS = ["Q2_K", "Q4_K_M", "Q6_K"]


def arguments():
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("model", type=Path, help="a folder with config.json, tokenizer.json, *.safetensors")
    cli.add_argument("--text", type=Path, action="append", required=True, help="evaluated; may be given again")
    cli.add_argument("--calibration", type=Path, required=True, help="text for calibrating, ours and llama.cpp's")
    cli.add_argument("--llama", type=Path, required=True, help="folder of llama-quantize, llama-imatrix, …")
    cli.add_argument("--airllm", type=Path, default=Path("target/release/airllm"))
    cli.add_argument("--only", choices=report.SERIES, action="append", help="leave out the other series")
    cli.add_argument("--calibration-tokens", type=int, default=32768, help="no more of the calibration text than this, for ours")
    cli.add_argument("--kind", action="append", help="a K-quant to compare with, in place of all; may be given again")
    cli.add_argument("--sizes", choices=("all", "llama"), default="all", help="whose sizes mixed models are made for too")
    cli.add_argument("--context", type=int, default=512)
    cli.add_argument("--chunks", type=int, help="no more windows of each text than this")
    cli.add_argument("--threads", type=int, default=1, help="for llama.cpp, whose threads wait by spinning")
    cli.add_argument("--ram", help="memory for airllm")
    cli.add_argument("--name", default="quality", help="of the result")
    cli.add_argument("--out", type=Path, default=Path("benches/results"))
    cli.add_argument("--work", type=Path, help="folder for models; what was measured there before is not measured again")
    return cli.parse_args()


class Journal:
    """What was measured, line by line; kept over interruptions as long as programs, texts and models are the same."""

    def __init__(self, path, settings):
        self.path, self.rows = path, {}
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        if lines and json.loads(lines[0]) == settings:
            rows = [json.loads(line) for line in lines[1:]]
            self.rows = {row["case"]: row for row in rows if "failed" not in row}
        text = [settings, *self.rows.values()]
        path.write_text("".join(json.dumps(line) + "\n" for line in text), "utf-8")

    def measure(self, case, series, work):
        """The row of a case; a program that fails is a row that says so."""
        if case in self.rows:
            return self.rows[case]
        row = {"case": case, "series": series}
        try:
            row.update(work())
        except tools.Failed as failure:
            print(f"{case}: FAILED: {failure}", file=sys.stderr)
            row["failed"] = str(failure).splitlines()[-1].split("error: ", 1)[-1][:300]
        self.rows[case] = row
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row


class Comparison:
    def __init__(self, args, work):
        self.args, self.work = args, work
        self.airllm = tools.Airllm(args.airllm, args.context, args.chunks, args.ram)
        self.llama = tools.Llama(args.llama, args.context, args.chunks, args.threads)
        config = json.loads((args.model / "config.json").read_text("utf-8"))
        self.ids = {}
        self.tied = bool(config.get("tie_word_embeddings"))
        self.weights = gguf_files.count_weights(args.model, self.tied)
        self.f16 = work / "f16.gguf"
        gguf_files.from_folder(args.model, self.f16)
        files = [args.airllm, args.calibration, *args.text, *sorted(args.model.glob("*.safetensors"))]
        stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        settings = {"files": stamps, "context": args.context, "chunks": args.chunks, "llama": self.llama.version()}
        self.journal = Journal(work / "journal.jsonl", settings)

    def wanted(self, series):
        return not self.args.only or series in self.args.only

    def scores(self, model, tensor_bytes, file_bytes):
        """A row's numbers: of all texts together, weighted by tokens, and of each."""
        texts = {}
        for text in self.args.text:
            found = self.airllm.evaluate(model, text, self.args.model)
            other = found["comparison"]
            texts[text.name] = {
                "tokens": found["tokens"],
                "perplexity": found["perplexity"]["value"],
                "reference_perplexity": other["perplexity"]["value"],
                "kl": other["kl_mean"]["value"],
                "kl_error": other["kl_mean"]["error"],
                "kl_99": other["kl_99"],
                "top1": other["top1_agreement"]["value"],
            }
        tokens = sum(each["tokens"] for each in texts.values())
        mean = lambda key: sum(each[key] * each["tokens"] for each in texts.values()) / tokens
        error = sum((each["kl_error"] * each["tokens"]) ** 2 for each in texts.values()) ** 0.5 / tokens
        return {
            "tensor_bytes": tensor_bytes,
            "file_bytes": file_bytes,
            "bits_per_weight": tensor_bytes * 8 / self.weights,
            "kl": mean("kl"),
            "kl_error": error,
            "top1": mean("top1"),
            "texts": texts,
        }

    def ours(self, case, series, options):
        def work():
            folder = self.work / "ours"
            remove(folder)
            self.airllm.prepare(self.args.model, folder, options)
            row = self.scores(folder, *shard_sizes(folder))
            remove(folder)
            return row | {"options": [str(option) for option in options if option != self.args.calibration]}

        return self.journal.measure(case, series, work)

    def k_quant(self, kind, imatrix):
        series = "llama.cpp, imatrix" if imatrix else "llama.cpp"

        def work():
            path = self.work / "quantised.gguf"
            fallbacks = self.llama.quantize(self.f16, path, kind, imatrix)
            row = self.gguf(path)
            if kind in CROSS:
                row["cross"] = self.cross_check(path)
            return row | {"types": gguf_files.sizes(path)[1], "fallbacks": fallbacks}

        return self.journal.measure(f"{kind} with imatrix" if imatrix else kind, series, work)

    def gguf(self, path):
        """The numbers of a GGUF file, evaluated with the original's tokenizer."""
        folder = self.work / "widened"
        remove(folder)
        gguf_files.to_folder(path, self.args.model, folder)
        row = self.scores(folder, gguf_files.sizes(path)[0], path.stat().st_size)
        remove(folder)
        return row

    def cross_check(self, path):
        """What our reading of the file itself, and llama-perplexity, say on the first text, by the tokenizer of the file."""
        text = self.args.text[0]
        saved = self.work / "logits.bin"
        if not saved.exists():
            self.llama.perplexity(self.f16, text, saved)
        found = {"text": text.name, "llama": self.llama.divergence(path, saved)}
        try:
            # The original as a GGUF file has the same tokenizer as the quantised one.
            ours = self.airllm.evaluate(path, text, self.f16)
        except tools.Failed as failure:
            return found | {"refused": str(failure).splitlines()[-1]}
        other = ours["comparison"]
        top1 = other["top1_agreement"]["value"]
        return found | {"ours": {"perplexity": ours["perplexity"]["value"], "kl": other["kl_mean"]["value"], "top1": top1}}

    def run(self):
        args = self.args
        for text in args.text:
            total, missing = tools.check_ids(self.airllm, self.llama, args.model, self.f16, text)
            self.ids[text.name] = {"tokens": total, "others": missing}

        quants = []
        self.journal.measure("f16", "check", lambda: self.gguf(self.f16))
        if self.wanted("llama.cpp"):
            self.k_quant(CHECK, None)
            quants += [self.k_quant(kind, None) for kind in args.kind or K_QUANTS]
        if self.wanted("llama.cpp, imatrix"):
            imatrix = self.work / "imatrix.gguf"
            self.llama.imatrix(self.f16, args.calibration, imatrix)
            quants += [self.k_quant(kind, imatrix) for kind in args.kind or K_QUANTS]

        calibrated = ["--calibration", args.calibration, "--calibration-tokens", args.calibration_tokens]
        uniform = []
        if self.wanted("nearest"):
            uniform += [self.ours(f"q{n}, nearest", "nearest", ["--bits", n]) for n in NEAREST]
        if self.wanted("calibrated"):
            each = lambda n: self.ours(f"q{n}, calibrated", "calibrated", ["--bits", n, *calibrated])
            uniform += [each(n) for n in NEAREST]
        if self.wanted("mixed"):
            for average in AVERAGES:
                row = self.ours(f"mixed, {average} bits", "mixed", ["--bits", average, *calibrated])
                # Below what the floors allow, the smallest model that there is takes its place.
                least = re.search(r"least possible is ([0-9.]+) bits", row.get("failed", ""))
                if least:
                    self.ours(f"mixed, {least[1]} bits (the least)", "mixed", ["--bits", least[1], *calibrated])
            # At the size of everything that it is compared with, each size once.
            sizes = {}
            for row in quants + (uniform if args.sizes == "all" else []):
                if "failed" not in row:
                    sizes.setdefault(row["tensor_bytes"], row["case"].removesuffix(" with imatrix"))
            for size, whose in sizes.items():
                whose = whose.replace(", nearest", "").replace(", calibrated", "")
                # `--size` is of files; tensors of the same bytes are a matter of bits a weight.
                average = f"{int(size * 8e6 / self.weights) / 1e6:.6f}"
                row = self.ours(f"mixed, size of {whose}", "mixed", ["--bits", average, *calibrated])
                row["limit"] = size
        return list(self.journal.rows.values())


def shard_sizes(folder):
    """Bytes of all tensors of a prepared folder (without checksums and what only fills up to a boundary), and of its shards."""
    tensors = files = 0
    for file in folder.rglob("*.safetensors"):
        files += file.stat().st_size
        with open(file, "rb") as raw:
            header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
        for name, entry in header.items():
            if not name.startswith("__"):
                begin, end = entry["data_offsets"]
                tensors += end - begin
    if not tensors:
        raise tools.Failed(f"{folder}: no tensors in what was prepared")
    return tensors, files


def remove(folder):
    """A folder that this script had prepared."""
    for file in sorted(folder.rglob("*"), reverse=True) if folder.exists() else []:
        file.rmdir() if file.is_dir() else file.unlink()


def main():
    args = arguments()
    for path in [args.model / "config.json", args.airllm, args.calibration, *args.text]:
        if not path.exists():
            raise SystemExit(f"{path}: not found")
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        (work / "logits.bin").unlink(missing_ok=True)
        comparison = Comparison(args, work)
        rows = comparison.run()
        failed = report.write(args, comparison, rows)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
