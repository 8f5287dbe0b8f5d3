"""report.txt and what the command line prints: the verdict in plain words, then the figures, 100 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath

from debride.report.channels import spans
from debride.report.compute import compute_words, cost_words
from debride.report.conversion import conversion_facts
from debride.report.rates import rates_table
from debride.report.retraining import retraining_section
from debride.report.slimming import slimming_section
from debride.report.words import (
    MOST_ROWS,
    WIDTH,
    class_label,
    field,
    fill,
    number,
    percent,
    plain,
    plural,
    rate,
    shorten,
    size,
)
from debride.types import Detection, Finding, InputSpec, Repeated, Report

LOWEST = 5


def to_text(report: Report, *, files: Sequence[str | PathLike[str]] = ()) -> str:
    """`report` as plain text without colour, at most 100 columns wide, ending in a newline.

    `files` are the files written, named at the end.
    """
    sections = (
        _head(report),
        _facts(report),
        _triggers("Triggers found, one per class", report.detection, report.spec.class_names),
        _rounds(report),
        _rates(report),
        _cut(report),
        slimming_section(report.slimming) if report.slimming else [],
        _retraining(report),
        _recheck(report),
        _notes("Warnings", report.warnings),
        _times(report),
        _files(files),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _head(report: Report) -> list[str]:
    lines = [f"{report.verdict.upper()}: {shorten(plain(report.model.name), WIDTH - len(report.verdict) - 2)}"]
    lines += fill(sentence(report))
    if report.reason:
        lines += fill(f"Reason: {report.reason}")
    return lines


def sentence(report: Report) -> str:
    """The verdict in one sentence for somebody who has not read the papers."""
    names = report.spec.class_names
    suspects = [shorten(class_label(s, names), 60) for s in report.detection.suspects]
    classes = f"class{'' if len(suspects) == 1 else 'es'} {', '.join(suspects)}" if suspects else "an unknown class"
    match report.verdict:
        case "clean":
            return f"No backdoor was found: no class can be reached with an abnormally small trigger.{_copied(report)}"
        case "backdoored":
            return f"A small pattern stamped on any image sends it to {classes}: treat the model as backdoored."
        case "sanitized":
            done, extent = _cleaned(report)
            return f"The backdoor towards {classes} was {done} the result was verified: {_change(report)}. {extent}."
        case "not sanitized":
            return f"The backdoor towards {classes} is weakened at most, not gone: {_change(report)}. Do not deploy it."
        case "inconclusive":
            return "The data do not tell whether the model is backdoored; this is not a pass."


def _copied(report: Report) -> str:
    """What the output is where nothing was found."""
    if not report.output:
        return ""
    if not (report.retraining and report.retraining.kept):
        return " The output is an unchanged copy."
    before, after = report.retraining.before, report.retraining.after
    return (
        " The output is the network retrained on the clean images: on held-out images "
        f"{after.kind} {percent(before.clean.value)} -> {percent(after.clean.value)}."
    )


def _cleaned(report: Report) -> tuple[str, str]:
    """What was done to the backdoor, and to how much of the network."""
    cut = f"{plural(len(report.pruned), 'channel group')} of {report.players} went"
    if not (report.retraining and report.retraining.kept):
        return "cut out and", cut
    changed = f"{plural(len(report.retraining.changes), 'initializer')} changed"
    return ("cut out and trained away, and", f"{cut}, {changed}") if report.pruned else ("trained away and", changed)


def _change(report: Report) -> str:
    before, after = report.before, report.after
    if before is None or after is None:
        return "no rates were measured"
    return (
        f"attack success {percent(before.worst_asr)} -> {percent(after.worst_asr)}, "
        f"{after.kind} {percent(before.clean.value)} -> {percent(after.clean.value)}"
    )


def _facts(report: Report) -> list[str]:
    lines = field("Model", f"{report.model.name}, {size(report.model.size)}, sha256 {report.model.sha256}")
    if report.output:
        same = report.output.sha256 == report.model.sha256
        what = "byte-identical to the model" if same else f"sha256 {report.output.sha256}"
        lines += field("Output", f"{report.output.name}, {size(report.output.size)}, {what}")
    for name, text in conversion_facts(report.conversion) if report.conversion else ():
        lines += field(name, text)
    lines += field("Input", _convention(report.spec))
    if report.samples:
        lines += field("Images", ", ".join(f"{name} {count}" for name, count in report.samples.items()))
    lines += field("Proxy", f"largest difference from onnxruntime {report.parity:.2g}")
    if report.compute:
        lines += field("Compute", compute_words(report.compute))
    lines += field("Seed", str(report.seed))
    return lines


def _convention(spec: InputSpec) -> str:
    origin = {
        "flags": "given by flags",
        "side-car": "from the side-car file",
        "metadata": "from the model's metadata",
        "measured": "measured on the clean images",
    }[spec.source]
    height, width = spec.size
    low, high = spec.range
    parts = [f"{spec.name!r} {spec.layout} {spec.channels} {height}x{width}", f"range {low:g} to {high:g}"]
    parts += [
        f"{n} {' '.join(f'{v:g}' for v in values)}" for n, values in (("mean", spec.mean), ("std", spec.std)) if values
    ]
    return f"{', '.join(parts)} ({origin})"


def _triggers(title: str, detection: Detection, names: Sequence[str]) -> list[str]:
    findings = detection.findings
    if not findings:
        return []
    shown = _chosen(findings)
    lines = [
        f"{title} (smallest first; clean models reach index {number(detection.threshold)})",
        f"  {'class':<32} {'L1, pixels':>10} {'index':>7}  {'success, held-out (95 %)':<25} verdict",
    ]
    for f in shown:
        label = shorten(class_label(f.trigger.target, names), 32)
        verdict = "SUSPECT" if f.suspect else "-"
        numbers = f"{number(f.trigger.l1):>10} {number(f.anomaly):>7}  {rate(f.trigger.success):<25}"
        lines.append(f"{'*' if f.suspect else ' '} {label:<32} {numbers} {verdict}")
    if len(findings) - detection.surveyed > len(shown):
        lines.append(f"  and {plural(len(findings) - detection.surveyed - len(shown), 'class')} more")
    if detection.surveyed:
        lines += fill(
            f"{detection.surveyed} of {len(findings)} classes were looked at briefly and not inverted, since others "
            f"promised smaller triggers; held against a random sample of {len(detection.compared)} classes"
            + (f"; {_repeated(detection.repeated)}" if detection.repeated else ""),
            "  ",
        )
    for f in shown:
        if f.suspect and f.reason:
            lines += fill(f"{shorten(class_label(f.trigger.target, names), 60)}: {f.reason}", "  ")
    if detection.inconclusive:
        lines += fill(f"Inconclusive: {detection.inconclusive}", "  ")
    return lines


def _repeated(repeated: Repeated) -> str:
    few = plural(len(repeated.classes), "class")
    return f"{few} with the smallest stand by the median of {repeated.times + 1} inversions"


def _chosen(findings: Sequence[Finding]) -> list[Finding]:
    """The suspects and the few smallest of the others, by size of trigger."""
    ranked = sorted((f for f in findings if f.suspect or not f.trigger.surveyed), key=lambda f: f.trigger.l1)
    suspects = [f for f in ranked if f.suspect][:MOST_ROWS]
    return suspects + [f for f in ranked if not f.suspect][:LOWEST]


def _rounds(report: Report) -> list[str]:
    if not report.rounds:
        return []
    lines = [
        "Rounds (pull to the target, from clean images to as delivered; random: as many groups cut blindly)",
        f"  {'':>2} {'class':<28} {'cut':>4} {'before':>8} {'random':>8} {'after':>8} {'utility':>8} {'played':>11}",
    ]
    for i, r in enumerate(report.rounds, 1):
        label = shorten(class_label(r.target, report.spec.class_names), 28)
        shares = " ".join(f"{percent(v):>8}" for v in (r.attack_before, r.attack_random, r.attack_after, r.utility))
        lines.append(f"  {i:>2} {label:<28} {r.removed:>4} {shares} {r.evaluations:>11}")
    return lines


def _rates(report: Report) -> list[str]:
    measured = [(name, e) for name, e in (("before", report.before), ("after", report.after)) if e]
    return rates_table("On held-out images", measured, report.spec.class_names) if measured else []


def _cut(report: Report) -> list[str]:
    if not report.pruned and (report.verdict != "not sanitized" or report.command == "retrain"):
        return []
    layers: dict[str, list[int]] = {}
    for p in report.pruned:
        layers.setdefault(p.group.layer, []).append(p.group.channel)
    lines = [f"Cut: {plural(len(report.pruned), 'channel group')} of {report.players} (layer: channels)"]
    for layer, channels in layers.items():
        lines += fill(f"{layer}: {spans(channels)}", "  ")
    if report.returned:
        lines.append(f"  {plural(report.returned, 'channel group')} more were cut and put back: they did nothing")
    refused = {r.reason: 0 for r in report.refused}
    for r in report.refused:
        refused[r.reason] += 1
    return (
        lines + [line for reason, n in refused.items() for line in fill(f"left alone, {n}: {reason}", "  ")][:MOST_ROWS]
    )


def _retraining(report: Report) -> list[str]:
    if report.retraining is None:
        return []
    return retraining_section(report.retraining, report.spec.class_names, pruned=bool(report.pruned))


def _recheck(report: Report) -> list[str]:
    if report.recheck is None:
        return []
    kept = report.retraining is not None and report.retraining.kept
    steps = ("retraining",) if report.command == "retrain" else ("the cut", "retraining") if kept else ("the cut",)
    return _triggers(f"Checked again after {' and '.join(steps)}", report.recheck, report.spec.class_names)


def _notes(title: str, notes: Sequence[str]) -> list[str]:
    return [title, *(line for note in notes for line in fill(note, "  "))] if notes else []


def _times(report: Report) -> list[str]:
    stages = {k: v for k, v in report.seconds.items() if k != "total"}
    total = report.seconds.get("total", sum(stages.values()))
    spent = cost_words(report.cost, len(report.detection.findings))
    passes = field("Passes", f"{spent}; of one image, forward and backward") if spent else []
    return passes + field("Seconds", ", ".join(f"{k} {number(v)}" for k, v in {**stages, "total": total}.items()))


def _files(files: Sequence[str | PathLike[str]]) -> list[str]:
    return ["Files", *(f"  {plain(fspath(f))}" for f in files)] if files else []
