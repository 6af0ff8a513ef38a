"""What compare.py has found: a JSON result, a table, a plot, and verdicts."""

import datetime
import json
import math
import sys

import tools

SERIES = ["nearest", "calibrated", "mixed", "llama.cpp", "llama.cpp, imatrix"]
COLOURS = dict(zip(SERIES, ["#9a9a9a", "#2f6db5", "#c8321f", "#7fb07f", "#22722a"]))


def write(args, comparison, rows):
    """Writes the three files, prints table and verdicts; the cases that failed."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    good = [row for row in rows if "failed" not in row]
    failed = [row for row in rows if "failed" in row]
    said = verdicts(good, failed)
    head = {
        "name": args.name,
        "date": date,
        "machine": tools.machine(),
        "command": "python benches/quality/compare.py MODEL"
        + "".join(f" --text {text.name}" for text in args.text)
        + f" --calibration {args.calibration.name} --llama DIR"
        + (f" --chunks {args.chunks}" if args.chunks else "")
        + (f" --context {args.context}" if args.context != 512 else "")
        + (f" --calibration-tokens {args.calibration_tokens}" if args.calibration_tokens != 32768 else "")
        + "".join(f" --kind {kind}" for kind in args.kind or [])
        + (f" --sizes {args.sizes}" if args.sizes != "all" else "")
        + "".join(f' --only "{series}"' for series in args.only or []),
        "commit": tools.first_line(["git", "rev-parse", "--short", "HEAD"]),
        "model": {"name": args.model.name, "weights": comparison.weights, "tied": comparison.tied},
        "llama": comparison.llama.version(),
        "ids": comparison.ids,
        "verdicts": said,
        "rows": [result_row(row, good) for row in good],
        "failed": failed,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"{date}-{args.name}"
    table = markdown(args, comparison, good, failed, said, f"{stem.name}.svg")
    stem.with_suffix(".json").write_text(json.dumps(head, indent=2, ensure_ascii=False) + "\n", "utf-8")
    stem.with_suffix(".md").write_text(table, "utf-8")
    stem.with_suffix(".svg").write_text(plot(good, args.model.name), "utf-8")
    print(table)
    print(f"written: {stem}.json, .md, .svg", file=sys.stderr)
    return failed


def result_row(row, rows):
    """In the form of benches/results: divergence in thousandths of a nat, against what has the same size."""
    out = {
        "case": f"{row['case']}: {row['bits_per_weight']:.3f} bits a weight",
        "value": float(f"{row['kl'] * 1e3:.4g}"),
        "unit": "10⁻³ nats of KL",
    }
    same = rival(row, rows)
    if same:
        out["ratio"] = float(f"{row['kl'] / same['kl']:.3g}") if same["kl"] else None
        out["against"] = same["case"]
    return out | {key: value for key, value in row.items() if key != "case"}


def rival(row, rows):
    """The better one of what a mixed model was made as large as."""
    same = [other for other in rows if other["tensor_bytes"] == row.get("limit") and other["series"] != "mixed"]
    return min(same, key=lambda other: other["kl"], default=None)


def verdict(mixed, other):
    """Whether a mixed model is below another in divergence, being no larger."""
    if mixed["tensor_bytes"] > other["tensor_bytes"]:
        excess = mixed["tensor_bytes"] / other["tensor_bytes"] - 1
        return f"NO: {excess:.2%} larger than it may be"
    ratio = mixed["kl"] / other["kl"] if other["kl"] else math.inf
    error = math.hypot(mixed["kl_error"], other["kl_error"])
    within = ", within two standard errors" if abs(mixed["kl"] - other["kl"]) < 2 * error else ""
    return f"{'yes' if ratio < 1 else 'NO'}: {mixed['kl']:.3g} against {other['kl']:.3g} nats, ratio {ratio:.2f}{within}"


def verdicts(rows, failed):
    """At every size: mixed against the K-quants, with and without imatrix, and against uniform widths."""
    said = []
    mixed = [row for row in rows if row["series"] == "mixed"]
    for other in rows:
        if other["series"] in ("mixed", "check") or other["case"] == "Q8_0":
            continue
        name = f"mixed below {other['case']} ({other['bits_per_weight']:.2f} bits)"
        same = [row for row in mixed if row.get("limit") == other["tensor_bytes"]]
        refused = [row for row in failed if row.get("limit") == other["tensor_bytes"]]
        answer = verdict(same[0], other) if same else f"NO: {refused[0]['failed']}" if refused else "not measured"
        said.append(f"{name}: {answer}")
    # Where no uniform width has that size: the straight line through them, of the logarithm of the divergence.
    for series in ["nearest", "calibrated"]:
        line = [row for row in rows if row["series"] == series]
        for row in mixed:
            at = row["bits_per_weight"]
            below = max((r for r in line if r["bits_per_weight"] <= at), key=lambda r: r["bits_per_weight"], default=None)
            above = min((r for r in line if r["bits_per_weight"] > at), key=lambda r: r["bits_per_weight"], default=None)
            if "limit" in row or not below or not above:
                continue
            share = (at - below["bits_per_weight"]) / (above["bits_per_weight"] - below["bits_per_weight"])
            kl = math.exp((1 - share) * math.log(below["kl"]) + share * math.log(above["kl"]))
            answer = f"{'yes' if row['kl'] < kl * (1 - 1e-6) else 'NO'}: {row['kl']:.3g} against {kl:.3g} nats"
            said.append(f"{row['case']} ({at:.2f} bits) below the line through uniform, {series}: {answer}")
    return said + [f"{row['case']}: FAILED: {row['failed']}" for row in failed]


def markdown(args, comparison, rows, failed, said, svg):
    names = [text.name for text in args.text]
    weights = f"{comparison.weights:,}"
    out = [f"# {args.name}: {args.model.name}, {weights} weights\n"]
    reference = next((row for row in rows if row["series"] == "check"), None)
    if reference:
        each = (f"{name} {reference['texts'][name]['reference_perplexity']:.4f}" for name in names)
        out.append(f"Perplexity of the reference: {', '.join(each)}. KL in nats against it, over all texts.\n")
    out.append(f"![KL divergence against bits per weight]({svg})\n")
    out.append(f"| | bits/weight | tensors, bytes | files, bytes | KL | ± | 99 % KL: {' / '.join(names)} |"
               f" same top token | perplexity: {' / '.join(names)} |")
    out.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    order = ["check", *SERIES]
    for row in sorted(rows, key=lambda row: (order.index(row["series"]), row["tensor_bytes"])):
        each = [row["texts"][name] for name in names]
        out.append(
            f"| {row['case']}{' ¹' if row.get('fallbacks') else ''} "
            f"| {row['bits_per_weight']:.3f} | {row['tensor_bytes']} | {row['file_bytes']} "
            f"| {row['kl']:.3e} | {row['kl_error']:.0e} | {' / '.join(format(t['kl_99'], '.3g') for t in each)} "
            f"| {row['top1']:.2%} | {' / '.join(format(t['perplexity'], '.3f') for t in each)} |"
        )
    out += [f"| {row['case']} | FAILED: {row['failed'].replace('|', '/')} | | | | | | | |" for row in failed]
    out.append("\nBits per weight: bytes of all tensors, vectors and scales included, over all weights; a head that is the"
               " embedding counts once. Files: with headers, padding and (GGUF) vocabulary.")
    if any(row.get("fallbacks") for row in rows):
        out.append("¹ Some rows are no multiple of 256 long; llama-quantize took other, larger types for those tensors.")
    for name, ids in comparison.ids.items():
        others = ", ".join(f"{who} misses {missing}" for who, missing in ids["others"].items())
        out.append(f"Ids of {name}: {ids['tokens']}; of these {others}.")
    crossed = [row for row in rows if row.get("cross")]
    if crossed:
        text = crossed[0]["cross"]["text"]
        out.append(f"\n## Cross-check on {text}\n")
        out.append("Widened: as in the table above. GGUF: the file itself, by its own tokenizer.\n")
        out.append("| | KL: widened | airllm, GGUF | llama-perplexity | perplexity: widened | airllm, GGUF | llama-perplexity |"
                   " same top token: widened | airllm, GGUF | llama-perplexity |")
        out.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
        for row in crossed:
            three = [row["texts"][text], row["cross"].get("ours"), row["cross"]["llama"]]
            cells = [
                form.format(each[key]) if each else "not read"
                for key, form in [("kl", "{:.5f}"), ("perplexity", "{:.4f}"), ("top1", "{:.2%}")]
                for each in three
            ]
            out.append(f"| {row['case']} | {' | '.join(cells)} |")
    out.append("\n## Verdicts\n")
    out += [f"- {line}" for line in said]
    return "\n".join(out) + "\n"


def plot(rows, model):
    """Divergence against bits per weight, on a logarithmic scale."""
    shown = [row for row in rows if row["series"] in SERIES and row["kl"] > 0 and row["case"] != "Q8_0"]
    width, height, left, top, right, bottom = 860, 540, 70, 40, 20, 50
    if not shown:
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"/>\n'
    bits = [row["bits_per_weight"] for row in shown]
    logs = [math.log10(row["kl"]) for row in shown]
    x0, x1 = math.floor(min(bits) * 2) / 2, math.ceil(max(bits) * 2) / 2
    y0, y1 = min(logs) - 0.1, max(logs) + 0.1
    x = lambda value: left + (value - x0) / max(x1 - x0, 0.5) * (width - left - right)
    y = lambda value: top + (y1 - math.log10(value)) / (y1 - y0) * (height - top - bottom)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="14">{escape(model)}: KL divergence from the original, in nats</text>',
    ]
    line = '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}"/>'.format
    for power in range(math.floor(y0), math.ceil(y1) + 1):
        for digit in range(1, 10):
            value = digit * 10.0**power
            if y0 <= math.log10(value) <= y1:
                out.append(line(left, y(value), width - right, y(value), "#bbb" if digit == 1 else "#eee"))
                if digit in (1, 2, 5):
                    out.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for half in range(round(x0 * 2), round(x1 * 2) + 1):
        out.append(line(x(half / 2), top, x(half / 2), height - bottom, "#eee"))
        out.append(f'<text x="{x(half / 2):.1f}" y="{height - bottom + 18}" text-anchor="middle">{half / 2:g}</text>')
    out.append(f'<text x="{(left + width - right) / 2:.0f}" y="{height - 12}" text-anchor="middle">bits per weight</text>')
    for number, series in enumerate(SERIES):
        points = sorted((row for row in shown if row["series"] == series), key=lambda row: row["bits_per_weight"])
        if not points:
            continue
        colour = COLOURS[series]
        places = " ".join(f"{x(row['bits_per_weight']):.1f},{y(row['kl']):.1f}" for row in points)
        out.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for row in points:
            px, py = x(row["bits_per_weight"]), y(row["kl"])
            title = f"{row['case']}: {row['bits_per_weight']:.3f} bits, KL {row['kl']:.3g}"
            out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"><title>{escape(title)}</title></circle>')
            if series == "llama.cpp":
                out.append(f'<text x="{px + 6:.1f}" y="{py - 6:.1f}" fill="{colour}" font-size="10">{row["case"]}</text>')
        at = top + 18 + 18 * number
        out.append(line(width - 190, at - 4, width - 165, at - 4, colour))
        name = {"nearest": "uniform, nearest", "calibrated": "uniform, calibrated", "mixed": "mixed by sensitivity"}
        out.append(f'<text x="{width - 158}" y="{at}">{name.get(series, series)}</text>')
    return "\n".join(out) + "\n</svg>\n"


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
