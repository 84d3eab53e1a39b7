"""Rows of the table of `check_gpu.py`: what must hold, and what was found."""

from benchmarks.optimizers_bounds import found as bounds_of_optimizers

ADAMW = "AdamW"
TIME = 1.5  # of a reversible step, most that it may be of the plain one
# Of activations and gradients, most that a step may take of the plain one's.
# Counting the storages of these networks gives 0.65, 0.21 and 0.21.
ON_TOP = {"gpt2-124m": 0.75, "gpt2-774m": 0.35, "revcol-tiny": 0.4}
# Of all bytes, reversible with MicroAdam / plain with AdamW.
PEAK = {"gpt2-124m": 0.7, "gpt2-774m": 0.4, "revcol-tiny": 0.4}
STATE = {"Adam8bit": 2.2, "MicroAdam": 1.0}  # bytes a parameter


def row(what, must="", found="", verdict="PASS", reason=""):
    return {
        "what": what,
        "must be": must,
        "found": found,
        "verdict": verdict,
        "reason": reason,
    }


def at_most(what, value, bound):
    verdict = "PASS" if value <= bound else "FAIL"  # also if it is no number
    found = row(what, f"<= {bound:.3g}", f"{value:.3g}", verdict)
    return {**found, "value": float(value), "bound": bound}


def goal(device, what, value, bound):
    """A bound of time or bytes, which the small sizes of a CPU cannot show."""
    found = at_most(what, value, bound)
    if device == "cpu":
        found.update(verdict="SKIPPED", reason="a bound for sizes of a GPU")
    return found


def failed(what, reason):
    return row(what, verdict="FAIL", reason=reason)


def skipped(what, reason):
    return row(what, verdict="SKIPPED", reason=reason)


def of_checks(found, device):
    return found["rows"]


def of_optimizers(runs, device):
    """Rows of the JSON of `benchmark.py optimizers`."""
    for run in runs:
        size = f"{run['million parameters']:g}M {run['dtype']}"
        if "error" in run:
            yield failed(size, run["error"])
        for name, contender in run.get("contenders", {}).items():
            what = f"{size}, {name}"
            if "fails" in contender:
                yield failed(what, contender["fails"])
                continue
            ratios = contender["ratios"].items()
            told = [f"{contender['median ms']:.2f} ms"]
            told += [f"{value:.2f} x {other}" for other, value in ratios]
            yield row(what, "runs", ", ".join(told))
        for what, bound, value in bounds_of_optimizers(run):
            yield goal(device, f"{size}, {what}", value, bound)
        for package in run.get("not installed", ()):
            yield skipped(f"{size}, {package}", "not installed")


def of_reversible(runs, device):
    """Rows of the JSON of `benchmark.py reversible`."""
    for run in runs:
        kind = run["kind"]
        if "error" in run:
            yield failed(kind, run["error"])
            continue
        for name, contender in run["contenders"].items():
            if "fails" in contender:  # `keras.remat`, which is not ours
                yield skipped(f"{kind}, {name}", contender["fails"])
                continue
            told = f"{contender['median ms']:.1f} ms, "
            told += f"{contender['kept'] / 1e6:.1f} MB kept"
            yield row(f"{kind}, {name}", "the losses of plain", told)
        ours = run["contenders"]["reversible"]
        what = f"{kind}: time of a step, reversible / plain"
        yield goal(device, what, ours["ratio"], TIME)
        if run["growth"]:
            depths = f"{run['depth']} to {run['deeper']} blocks"
            share = run["growth"]["reversible"] / run["growth"]["plain"]
            what = f"{kind}: growth of bytes, {depths}, reversible / plain"
            yield goal(device, what, share, 0.1)


def of_billion(found, device):
    """Rows of the JSON of `billion_worker.py`."""
    if "not installed" in found:
        yield skipped("1B parameters", f"{found['not installed']} is missing")
        return
    what = f"{found['size']}: {found['parameters']:,} parameters"
    first, *_, last = found["losses"]
    told = f"loss {first:.2f} to {last:.2f}, "
    told += f"{found['tokens_a_second']:,.0f} tokens/s"
    falls = "PASS" if last < first else "FAIL"  # also if it is no number
    yield row(f"{what} train", "the loss falls", told, falls)
    gib = found["peak"] / 2**30
    yield goal(device, f"{what}: GiB at the peak", gib, found["limit"] / 2**30)


def of_published(runs, device):
    """Rows of the JSON of `benchmark.py published`."""
    for run in runs:
        network = run["network"]
        unit = "images" if network.startswith("revcol") else "tokens"
        trained = {}
        for found in run["rows"]:
            what = f"{network}, {found['contender']}"
            if "fails" in found:
                yield failed(what, found["fails"])
                continue
            trained[tuple(found["contender"].split(", "))] = found
            told = f"{found['peak bytes'] / 1e9:.2f} GB, "
            told += f"{found['a second']:,.0f} {unit}/s"
            yield row(what, "trains", told)
        yield from _bounds_of_published(network, trained, device)


def _bounds_of_published(network, trained, device):
    for (variant, optimizer), found in trained.items():
        name = f"{network}: {variant}, {optimizer}"
        plain = trained.get(("plain", optimizer))
        if plain and variant != "plain" and optimizer == ADAMW:
            share = found["bytes on top"] / plain["bytes on top"]
            bound = ON_TOP.get(network, 1.0)
            what = f"{name}: bytes on top of what is held / plain"
            yield goal(device, what, share, bound)
            what = f"{name}: time of a step / plain"
            yield goal(device, what, found["ms"] / plain["ms"], TIME)
        if optimizer in STATE and variant == "plain":
            share = found["state bytes"] / found["parameters"]
            what = f"{name}: bytes of state a parameter"
            yield goal(device, what, share, STATE[optimizer])
            adamw = trained.get((variant, ADAMW))
            if adamw:
                what = f"{name}: time of a step / {ADAMW}"
                yield goal(device, what, found["ms"] / adamw["ms"], 1.1)
    first = trained.get(("plain", ADAMW))
    last = trained.get(("reversible", "MicroAdam"))
    if first and last:
        what = f"{network}: peak, reversible with MicroAdam / plain with AdamW"
        share = last["peak bytes"] / first["peak bytes"]
        yield goal(device, what, share, PEAK.get(network, 1.0))
